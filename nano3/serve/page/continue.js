// The page for continuing a text, for models that have never seen a conversation: no turns, no Markdown.

import { streamText } from "./api.js";
import { connect } from "./connection.js";
import { copyButton, el } from "./dom.js";
import { errorCard, statsLine } from "./notes.js";
import * as store from "./store.js";
import { Written } from "./written.js";

const $ = (id) => document.getElementById(id);
const SAVE_EVERY_MS = 500;
const NEAR_END = 60;
const NEUTRAL = "Once upon a time";
const ADVICE = { auth: "Enter the key in the settings, then try again.", length: "Lower the length." };
const NUMBERS = { length: "max_tokens", temperature: "temperature", topP: "top_p", seed: "seed" };

const kept = store.loadText();
const state = {
  written: new Written(kept?.text, kept?.parts),
  settings: store.loadTextSettings(),
  model: null,
  running: null,
};

const opening = () => state.model?.opening || NEUTRAL;
const announce = (text) => ($("status").textContent = text);

/** Show the text, with the model's parts marked below it. */
function showText() {
  const { text, parts } = state.written;
  const area = $("text");
  if (area.value !== text) area.value = text;
  const nodes = [];
  let end = 0;
  for (const [from, to] of parts) {
    nodes.push(text.slice(end, from), el("mark", { textContent: text.slice(from, to) }));
    end = to;
  }
  // A last empty line has no height of its own.
  $("marks").replaceChildren(...nodes, `${text.slice(end)}\u200b`);
}

function showControls() {
  const { running, written } = state;
  $("go").hidden = Boolean(running);
  $("stop").hidden = !running;
  $("text").readOnly = Boolean(running);
  $("sheet").setAttribute("aria-busy", String(Boolean(running)));
  $("undo").disabled = Boolean(running) || !written.past.length;
  $("redo").disabled = Boolean(running) || !written.future.length;
  $("retry").disabled = Boolean(running) || !written.past.length || written.typed;
}

function show() {
  showText();
  showControls();
}

function save() {
  store.saveText(state.written.snapshot());
}

function say(...nodes) {
  $("outcome").replaceChildren(...nodes);
}

/** Body of the request for what follows the text. */
function requestBody() {
  const { settings, model, written } = state;
  const body = { model: settings.model, prompt: written.text, truncate_prompt_tokens: -1 };
  if (model?.base_model) body.add_special_tokens = true; // pretraining begins a document so
  for (const [field, name] of Object.entries(NUMBERS)) {
    const value = settings[field];
    if (value !== "" && Number.isFinite(Number(value))) body[name] = Number(value);
  }
  if (settings.stopAt) body.stop = [settings.stopAt.replaceAll("\\n", "\n")];
  return body;
}

/** Let the model write on, and show what it writes while it comes. */
async function goOn() {
  if (state.running) return;
  const run = { controller: new AbortController(), started: performance.now(), first: null, last: null };
  state.running = run;
  say();
  announce("Writing");
  try {
    if (!state.model) await begin();
    const body = requestBody();
    state.written.begin();
    showControls();
    await receive(run, body);
    announce("Done");
    say(...outcome(run));
  } catch (error) {
    const stopped = error.name === "AbortError";
    announce(stopped ? "Stopped" : "The request failed");
    say(...(stopped ? [note("Stopped."), stats(run)] : [failure(error)]));
    if (!stopped) $("outcome").scrollIntoView({ block: "nearest" });
  }
  const { written } = state;
  if (written.past.at(-1)?.text === written.text) written.past.pop(); // nothing to go back from
  state.running = null;
  show();
  save();
  const lost = document.activeElement === $("stop") || document.activeElement === document.body;
  if (lost && matchMedia("(pointer: fine)").matches) focusEnd();
}

async function receive(run, body) {
  let frame = 0;
  let saved = performance.now();
  const draw = () => {
    frame = 0;
    const sticking = nearEnd();
    showText();
    if (sticking) scrollToEnd();
  };
  try {
    for await (const chunk of streamText(body, state.settings.apiKey, run.controller.signal)) {
      take(run, chunk);
      frame ||= requestAnimationFrame(draw);
      if (performance.now() - saved > SAVE_EVERY_MS) {
        save();
        saved = performance.now();
      }
    }
  } finally {
    cancelAnimationFrame(frame);
    draw();
  }
}

function take(run, { choices, usage }) {
  const choice = choices?.[0];
  if (choice?.text) {
    run.last = performance.now();
    run.first ??= run.last;
    state.written.append(choice.text);
  }
  run.finish = choice?.finish_reason ?? run.finish;
  run.usage = usage ?? run.usage;
}

const note = (text) => el("span", { textContent: text });

function outcome(run) {
  const nodes = [];
  if (run.finish === "stop") nodes.push(note(state.settings.stopAt ? "The text ended." : "The model ended the text here."));
  return [...nodes, stats(run)];
}

function stats({ first, last, started, usage }) {
  if (first === null) return el("span");
  const figures = statsLine({
    tokens: usage?.completion_tokens,
    firstMs: first - started,
    streamMs: last - first,
    promptTokens: usage?.prompt_tokens,
    cachedTokens: usage?.prompt_tokens_details?.cached_tokens,
  });
  return el("span", { className: "stats", textContent: figures });
}

function failure({ kind = "server", message, retryAfter = null }) {
  return errorCard({ kind, message, retryAfter }, { retry: goOn, settings: openSettings }, ADVICE);
}

function stop() {
  state.running?.controller.abort();
}

function step(name) {
  if (state.running) return;
  state.written[name]();
  say();
  show();
  save();
  announce(name === "undo" ? "Undone" : "Redone");
  focusEnd();
}

function retry() {
  if ($("retry").disabled) return;
  state.written.undo();
  goOn();
}

function newText() {
  stop();
  if (state.written.text !== opening()) state.written.replace(opening());
  say();
  show();
  save();
  focusEnd();
}

function edited() {
  state.written.edit($("text").value);
  show();
  save();
}

function nearEnd() {
  const scroller = $("scroller");
  return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_END;
}

function scrollToEnd() {
  $("scroller").scrollTop = $("scroller").scrollHeight;
}

function focusEnd() {
  const area = $("text");
  area.focus({ preventScroll: true });
  area.setSelectionRange(area.value.length, area.value.length);
  scrollToEnd();
}

/** Find the model; a reader without a text of their own gets a beginning in the model's kind of text. */
async function begin() {
  const { model, wantsKey } = await connect($("model"), state.settings);
  state.model = model;
  if (model && !state.written.text && kept === null) {
    state.written = new Written(opening());
    show();
    focusEnd();
  }
  if (!wantsKey || $("settings").open) return;
  openSettings();
  $("key-note").textContent = wantsKey;
  $("key-note").hidden = false;
  $("settings").querySelector("[name=apiKey]").focus();
}

function openSettings() {
  fillSettings();
  $("key-note").hidden = true;
  $("settings").showModal();
}

function fillSettings() {
  for (const field of document.querySelectorAll("input[name]")) field.value = state.settings[field.name];
  $("heat").textContent = Number(state.settings.temperature).toFixed(2);
}

function changeSetting({ target }) {
  if (!target.name) return;
  state.settings[target.name] = target.value;
  store.saveTextSettings(state.settings);
  if (target.name === "temperature") $("heat").textContent = Number(target.value).toFixed(2);
}

function resetSettings() {
  const { model, apiKey } = state.settings;
  state.settings = { ...store.defaultTextSettings(), model, apiKey };
  store.saveTextSettings(state.settings);
  fillSettings();
}

function onKey(event) {
  const command = event.ctrlKey || event.metaKey;
  if (event.key === "Escape" && !$("settings").open) stop();
  else if (event.key === "Enter" && command) goOn();
  else if (command && event.key.toLowerCase() === "z" && event.target === $("text") && !state.written.typed) {
    // The browser's own history ends where the model wrote.
    event.preventDefault();
    step(event.shiftKey ? "redo" : "undo");
  } else return;
  if (event.key === "Enter") event.preventDefault();
}

function listen() {
  $("text").addEventListener("input", edited);
  document.addEventListener("keydown", onKey);
  $("go").addEventListener("click", goOn);
  $("stop").addEventListener("click", stop);
  $("undo").addEventListener("click", () => step("undo"));
  $("redo").addEventListener("click", () => step("redo"));
  $("retry").addEventListener("click", retry);
  $("new").addEventListener("click", newText);
  $("open-settings").addEventListener("click", openSettings);
  $("reset").addEventListener("click", resetSettings);
  $("settings").addEventListener("close", begin);
  document.addEventListener("input", changeSetting);
  $("model").addEventListener("change", (event) => {
    state.settings.model = event.target.value;
    store.saveTextSettings(state.settings);
  });
  for (const leaving of ["beforeunload", "pagehide"]) window.addEventListener(leaving, save);
}

$("copy").replaceWith(copyButton(() => state.written.text));
fillSettings();
listen();
show();
focusEnd();
begin();
