// What is said about an answer: its figures, and what went wrong.

import { el } from "./dom.js";

export const seconds = (ms) =>
  ms < 100 ? `${Math.round(ms)} ms` : ms < 9950 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 1000)} s`;

/** What to do about each kind of error, beside the message. */
const ADVICE = {
  auth: "Enter the key in the settings, then try again.",
  length: "Start a new chat, or shorten the message or the longest answer in the settings.",
};

export function button(label, onClick, className = "small") {
  const node = el("button", { type: "button", className, textContent: label });
  node.addEventListener("click", onClick);
  return node;
}

/** `actions`: what can be done, {retry, settings, newChat?}; null where nothing is offered. */
export function errorCard(error, actions, advices = ADVICE) {
  const node = el("div", { className: "error" }, el("p", { textContent: error.message }));
  if (!actions) return node;
  const advice = error.retryAfter ? `Try again in ${error.retryAfter} s.` : advices[error.kind];
  if (advice) node.append(el("p", { className: "advice", textContent: advice }));
  node.setAttribute("role", "alert");
  const row = el("div", { className: "row" }, button("Try again", actions.retry, "quiet"));
  if (error.kind === "auth") row.append(button("Open settings", actions.settings, "quiet"));
  if (error.kind === "length" && actions.newChat) row.append(button("New chat", actions.newChat, "quiet"));
  node.append(row);
  return node;
}

/** Time to first token, speed and counts, as far as they are known. */
export function statsLine({ tokens, firstMs, streamMs, promptTokens, cachedTokens }) {
  const parts = [];
  if (tokens > 1 && streamMs > 0) parts.push(`${(((tokens - 1) * 1000) / streamMs).toFixed(1)} tokens/s`);
  if (firstMs !== undefined) parts.push(`first token ${seconds(firstMs)}`);
  if (tokens !== undefined) parts.push(`${tokens.toLocaleString("en")} tokens`);
  if (promptTokens !== undefined) {
    const cached = cachedTokens ? `, ${cachedTokens.toLocaleString("en")} cached` : "";
    parts.push(`prompt ${promptTokens.toLocaleString("en")}${cached}`);
  }
  return parts.join(" · ");
}
