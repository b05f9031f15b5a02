// Shows the turns of a conversation: what was asked, thinking, tool calls, answer, figures, errors.

import { copyButton, el } from "./dom.js";
import { show } from "./markdown.js";
import { button, errorCard, seconds, statsLine } from "./notes.js";

/** A long prompt is read, or others come first: from then on the wait is shown in seconds. */
const LONG_WAIT_MS = 2000;

/** Enough for the lines that are shown of running thinking. */
const PEEK_LETTERS = 400;

/** Element of a question, with its edit button where `onEdit` is given. */
export function userTurn(turn, onEdit) {
  const node = el("article", { className: "turn user", "aria-label": "You" });
  const text = el("div", { className: "bubble", textContent: turn.text });
  const actions = el("div", { className: "actions" }, copyButton(() => turn.text));
  if (onEdit) actions.prepend(button("Edit", () => editor(node, turn.text, onEdit)));
  node.append(text, actions);
  return node;
}

function editor(node, text, onEdit) {
  const before = [...node.childNodes];
  const area = el("textarea", { value: text, "aria-label": "Edit message" });
  const close = () => node.replaceChildren(...before);
  const save = () => (area.value.trim() ? onEdit(area.value) : area.focus());
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      close();
    } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      save();
    }
  });
  const actions = el("div", { className: "row end" }, button("Cancel", close), button("Send", save, "primary"));
  node.replaceChildren(el("div", { className: "editor" }, area, actions));
  area.rows = Math.min(12, text.split("\n").length + 1);
  area.focus();
}

/** The element of an answer, kept up to date by `update`. */
export class AnswerView {
  /** `actions`: {retry, settings, newChat, sendResults}; each is called without arguments but the last. */
  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    this.summary = el("summary");
    this.thought = el("div", { className: "thought" });
    this.thinking = el("details", { className: "thinking", hidden: true }, this.summary, this.thought);
    this.peek = el("div", { className: "peek", "aria-hidden": "true" });
    this.thinking.addEventListener("toggle", () => this.showPeek());
    this.waited = el("span");
    this.waiting = el("div", { className: "waiting" }, el("i"), el("i"), el("i"), this.waited);
    this.since = Date.now();
    this.text = el("div", { className: "text" });
    this.calls = el("div", { className: "calls" });
    this.foot = el("div", { className: "foot" });
    this.node = el(
      "article", { className: "turn answer", "aria-label": "Answer" },
      this.thinking, this.peek, this.waiting, this.text, this.calls, this.foot,
    );
  }

  /** Show the turn as it is now; `last`: it is the last one, which can be asked for again. */
  update(running, last) {
    const { turn } = this;
    this.updateThinking(running);
    this.waiting.hidden = !running || Boolean(turn.text || turn.reasoning || turn.calls.length);
    const waited = Date.now() - this.since;
    this.waited.textContent = waited > LONG_WAIT_MS ? `${Math.round(waited / 1000)} s` : "";
    show(this.text, turn.text, running);
    this.updateCalls(running, last);
    this.node.setAttribute("aria-busy", String(running));
    this.foot.replaceChildren(...(running ? [] : this.footNodes(last)));
  }

  updateThinking(running) {
    const { turn } = this;
    this.thinking.hidden = !turn.reasoning;
    if (!turn.reasoning) return this.showPeek();
    const open = running && turn.thinkingMs === undefined;
    this.thinking.classList.toggle("running", open);
    const elapsed = turn.thinkingMs ?? (turn.thinkingFrom ? Date.now() - turn.thinkingFrom : 0);
    const thought = elapsed ? `Thought for ${seconds(elapsed)}` : "Thinking";
    this.summary.textContent = open ? `Thinking … ${seconds(elapsed)}` : thought;
    if (this.thought.textContent !== turn.reasoning) this.thought.textContent = turn.reasoning;
    this.showPeek();
  }

  /** The last lines of thinking that is folded while it goes on, so that one sees that it does. */
  showPeek() {
    this.peek.hidden = !this.thinking.classList.contains("running") || this.thinking.open;
    this.peek.textContent = this.peek.hidden ? "" : this.turn.reasoning.slice(-PEEK_LETTERS).trimEnd();
  }

  updateCalls(running, last) {
    const { turn } = this;
    const asked = JSON.stringify([turn.calls, running, last]);
    if (this.shownCalls === asked) return;
    this.shownCalls = asked;
    const wanted = !running && last && turn.calls.length > 0 && !turn.error;
    const fields = turn.calls.map((call) => toolCall(call, wanted));
    this.calls.replaceChildren(...fields.map(({ node }) => node));
    if (!wanted) return;
    const send = () => this.actions.sendResults(fields.map(({ area }) => area.value));
    this.calls.append(el("div", { className: "row end" }, button("Send results", send, "primary")));
  }

  footNodes(last) {
    const { turn, actions } = this;
    const nodes = [];
    if (turn.stopped) nodes.push(note("Stopped."));
    if (turn.finish === "length") nodes.push(note("Cut off: the longest answer or the context is reached."));
    if (turn.error) nodes.push(errorCard(turn.error, last ? actions : null));
    const row = el("div", { className: "actions" });
    if (turn.text) row.append(copyButton(() => turn.text));
    if (last && !turn.error) row.append(button("Regenerate", actions.retry));
    if (turn.stats) row.append(el("span", { className: "stats", textContent: statsLine(turn.stats) }));
    if (row.childNodes.length) nodes.push(row);
    return nodes;
  }
}

const note = (text) => el("p", { className: "note", textContent: text });

function toolCall(call, wanted) {
  const id = `result-${call.id}`;
  const area = el("textarea", { id, rows: 2, placeholder: "What the tool answers", value: call.result ?? "" });
  const result = wanted
    ? el("div", { className: "result" }, el("label", { for: id, textContent: `Result of ${call.name}` }), area)
    : call.result === undefined ? null : el("div", { className: "result" }, el("span", { textContent: "Result" }), el("pre", { textContent: call.result }));
  const node = el(
    "div", { className: "call" },
    el("div", { className: "call-head" }, el("span", { textContent: "Tool call" }), el("code", { textContent: call.name })),
    el("pre", { tabIndex: 0 }, el("code", { textContent: pretty(call.arguments) })),
    result,
  );
  return { node, area };
}

/** Arguments with indentation, or as they are while incomplete. */
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
