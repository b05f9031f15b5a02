// Mathematics in Markdown: $…$, $$…$$, \(…\) and \[…\]; typeset by KaTeX, which is loaded for the first formula.

import { el } from "./dom.js";

const BLOCK = /^ {0,3}(?:\$\$(?!\$)([^$]{1,9000})\$\$|\\\[([^]{1,9000}?)\\\])[ \t]*(?:\n|$)/;
const OPEN_BLOCK = /^ {0,3}(?:\$\$(?!\$)|\\\[(?![^]*\\\]))([^$]*)$/;
const BLOCK_START = /\n {0,3}(?=\$\$|\\\[)/;

const INLINE = [
  /\$\$(?!\$)(?<dollars>(?:\\[^]|[^\\$]){1,2000})\$\$(?!\$)/,
  // A dollar opens before and closes after something else than a space, and no word or number follows:
  // so "$5 and $6" and "$HOME/$USER" are none, and "the $n$th" is one.
  /\$(?![\s$])(?<dollar>(?:\\[^]|[^\\$`\n]|\n(?![ \t]*\n)){1,1000})(?<!\s)\$(?=(?:th|st|nd|rd|s)\b|[^\w$]|$)/,
  /\\\((?<round>(?:(?!\\\)|\n[ \t]*\n)[^]){1,2000})\\\)/,
  /\\\[(?<square>(?:(?!\\\]|\n[ \t]*\n)[^]){1,2000})\\\](?!\()/,
].map((part) => part.source).join("|");
const AT_START = new RegExp(`^(?:${INLINE})`);
const ANYWHERE = new RegExp(`(?<![\\w$\\\\])(?:${INLINE})`, "g");
const START = /(?<![\w$\\])\$|\\[([]/;
const PRICE = /^[\d.,]+\S*\s+\(?[a-z]{2,}/i; // "5, or 4": an amount and prose, up to the next dollar
const CITATION = /^[\d\s,.–-]*$/; // \[1\]

/** The formula at the start of `text`: {raw, tex, display}; null where there is none. */
export function formulaAt(text) {
  const found = text.match(AT_START);
  if (!found) return null;
  const { dollars, dollar, round, square } = found.groups;
  if (dollar !== undefined && PRICE.test(dollar)) return null;
  if (square !== undefined && CITATION.test(square)) return null;
  const tex = dollars ?? dollar ?? round ?? square;
  return tex.trim() ? { raw: found[0], tex, display: (dollars ?? square) !== undefined } : null;
}

/** Extensions of marked; while `running()`, a block that is not closed is a formula still being written. */
export const mathSyntax = (running) => ({
  extensions: [
    {
      name: "mathBlock",
      level: "block",
      start: (text) => {
        const line = text.search(BLOCK_START);
        return line < 0 ? undefined : line + 1;
      },
      tokenizer(text) {
        const found = text.match(BLOCK) ?? (running() ? text.match(OPEN_BLOCK) : null);
        if (!found) return undefined;
        const closed = found.length === 3;
        const tex = found[1] ?? found[2];
        return !closed || tex.trim() ? { type: "math", raw: found[0], tex, display: true, pending: !closed } : undefined;
      },
    },
    {
      name: "math",
      level: "inline",
      start: (text) => text.match(START)?.index,
      tokenizer(text, tokens) {
        if (text[0] === "$" && /[\w$]$/.test(tokens.at(-1)?.raw ?? "")) return undefined;
        const found = formulaAt(text);
        return found ? { type: "math", ...found } : undefined;
      },
    },
  ],
  // Stars and underscores within a formula are no emphasis.
  hooks: { emStrongMask: (text) => text.replace(ANYWHERE, (formula) => "a".repeat(formula.length)) },
});

/** Element of a formula. Until KaTeX is there, and where it cannot read the formula, it shows the source. */
export function formula({ raw, tex, display, pending }) {
  const node = el("span", { className: display ? "math display" : "math" });
  const source = () => node.replaceChildren(el("code", { textContent: pending ? tex.trim() : raw.trim() }));
  if (pending) source();
  else if (loaded) typeset(node, tex, display, source);
  else {
    source();
    load().then(() => typeset(node, tex, display, source), () => {});
  }
  return node;
}

const OPTIONS = { throwOnError: true, strict: "ignore", trust: false, maxSize: 20, maxExpand: 500 };
let loaded = null;
let loading = null;

function typeset(node, tex, display, source) {
  try {
    const tree = loaded.__renderToDomTree(tex, { ...OPTIONS, displayMode: display });
    withoutStyleAttributes(tree);
    node.replaceChildren(tree.toNode());
  } catch (error) {
    source();
    node.title = error.message;
  }
}

/** The policy of the page allows none; KaTeX writes them where its classes and the style object say the same. */
function withoutStyleAttributes({ attributes, children = [] }) {
  if (attributes) delete attributes.style;
  children.forEach(withoutStyleAttributes);
}

function load() {
  loading ??= Promise.all([
    attach(el("link", { rel: "stylesheet", href: "vendor/katex/katex.min.css" })),
    attach(el("script", { src: "vendor/katex/katex.min.js" })),
  ]).then(
    () => (loaded = globalThis.katex),
    (error) => {
      loading = null; // the next formula tries again
      throw error;
    },
  );
  return loading;
}

const attach = (node) =>
  new Promise((resolve, reject) => {
    node.onload = resolve;
    node.onerror = () => (node.remove(), reject(new Error("not loaded")));
    document.head.append(node);
  });
