// Which model the page talks to: the list of models in the header.

import { listModels } from "./api.js";
import { el } from "./dom.js";

/**
 * Ask the server for its models and show them in `select`; keeps the choice in `settings.model`.
 * Returns {model, wantsKey}: the chosen model (null without one), and what the server says where it wants an API key.
 */
export async function connect(select, settings) {
  try {
    const models = await listModels(settings.apiKey);
    select.replaceChildren(...models.map(({ id }) => el("option", { value: id, textContent: id })));
    select.disabled = models.length < 2;
    const model = models.find(({ id }) => id === settings.model) ?? models[0] ?? null;
    settings.model = model?.id ?? "";
    select.value = settings.model;
    document.title = model ? `${model.id} · nano3` : "nano3";
    return { model, wantsKey: null };
  } catch (error) {
    const label = { auth: "needs an API key", gone: "not connected" }[error.kind] ?? "not available";
    select.replaceChildren(el("option", { textContent: label }));
    select.disabled = true;
    return { model: null, wantsKey: error.kind === "auth" ? error.message : null };
  }
}
