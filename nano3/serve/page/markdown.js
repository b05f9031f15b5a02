// Markdown to DOM nodes: marked finds the structure, and each of its tokens becomes an element of a known kind.
// Model text becomes text nodes only, so nothing in it can turn into markup.

import { copyButton, el } from "./dom.js";
import { formula, mathSyntax } from "./math.js";
import { completed } from "./unfinished.js";
import { Lexer, Marked } from "./vendor/marked/marked.esm.js";

const LINK = /^(?:https?:\/\/|mailto:)/i;
const ENTITY = /&(?:#\d{1,7}|#x[\da-f]{1,6}|[a-z][a-z\d]{1,31});/gi;
/** Blocks at the end of a running text that its next letters may still turn into others. */
const UNSETTLED = 2;

let running = false;
const parser = new Marked(mathSyntax(() => running), {
  // HTML is text like any other, but for the line breaks that models write into tables.
  tokenizer: { html: () => undefined, tag: () => undefined, del: (text) => (text.startsWith("~~") ? false : undefined) },
  extensions: [
    {
      name: "break",
      level: "inline",
      start: (text) => text.match(/<br/i)?.index,
      tokenizer(text) {
        const found = text.match(/^<br\s*\/?>\n?/i);
        return found ? { type: "br", raw: found[0] } : undefined;
      },
    },
  ],
});

const shown = new WeakMap(); // target -> what was shown in it last

/** Show `text` in `target`. While `unfinished`, only its last blocks are read again, and their ends completed. */
export function show(target, text, unfinished = false) {
  const source = text.replace(/\r\n?/g, "\n");
  let state = shown.get(target);
  if (state?.source === source && state.unfinished === unfinished) return;
  if (!state?.unfinished || !unfinished || !source.startsWith(state.source)) {
    state = { settled: [], offset: 0, links: {} };
  }
  state.source = source;
  state.unfinished = unfinished;
  shown.set(target, state);
  let tokens = lex(state);
  if (definesMore(tokens, state)) {
    state.settled = [];
    state.offset = 0;
    target.replaceChildren(); // texts above may name the new address
    tokens = lex(state);
  }
  const blocks = tokens.filter(isShown);
  fill(target, [...state.settled, ...blocks]);
  settle(state, tokens, blocks);
}

function lex({ source, offset, links, unfinished }) {
  const lexer = new Lexer(parser.defaults);
  Object.assign(lexer.tokens.links, links);
  running = unfinished;
  const tail = source.slice(offset);
  return lexer.lex(unfinished ? completed(tail) : tail);
}

/** Whether there are addresses of reference links that were not known before. */
function definesMore(tokens, { links }) {
  const found = tokens.filter(({ type, tag }) => type === "def" && !Object.hasOwn(links, tag));
  for (const { tag, href, title } of found) links[tag] = { href, title };
  return found.length > 0;
}

/** Keep the blocks that no further letter can change. */
function settle(state, tokens, blocks) {
  if (!state.unfinished || blocks.length <= UNSETTLED) return;
  const first = blocks.at(-UNSETTLED);
  for (const token of tokens) {
    if (token === first) break;
    state.offset += token.raw.length;
    if (isShown(token)) state.settled.push(token);
  }
}

const isShown = ({ type }) => type !== "space" && type !== "def";

/** Make the children of `parent` those of `tokens`. Nodes of unchanged tokens stay; blocks that grew grow in place. */
function fill(parent, tokens) {
  const nodes = [...parent.childNodes];
  tokens.forEach((token, i) => {
    const key = keyOf(token);
    const node = nodes[i];
    if (node?.key === key) return;
    const next = (node?.kind === kindOf(token) && grown(node, token)) || block(token);
    next.key = key;
    next.kind = kindOf(token);
    if (next === node) return;
    if (node) node.replaceWith(next);
    else parent.append(next);
  });
  nodes.slice(tokens.length).forEach((node) => node.remove());
}

const kindOf = ({ type, ordered, start, loose, lang }) => [type, ordered, start, loose, lang].join();
const keyOf = (token) => `${kindOf(token)}:${token.pending ?? ""}:${token.raw}`;

/** The node with its token's new content; null where it has to be built anew. */
function grown(node, token) {
  if (token.type === "code") {
    node.querySelector("code").firstChild.data = token.text;
    return node;
  }
  if (token.type === "list") fill(node, token.items);
  else if (token.type === "list_item" || token.type === "blockquote") fill(node, token.tokens.filter(isShown));
  else return null;
  return node;
}

const BLOCKS = {
  heading: ({ depth, tokens }) => inline(el(`h${Math.min(depth + 2, 6)}`), tokens),
  paragraph: ({ tokens }) => inline(el("p"), tokens),
  text: (token) => inline(el("span"), token.tokens ?? [token]),
  code,
  blockquote: (token) => grown(el("blockquote"), token),
  list: (token) => grown(token.ordered ? el("ol", { start: token.start }) : el("ul"), token),
  list_item: (token) => grown(el("li", { className: token.task ? "task" : "" }), token),
  checkbox,
  table,
  hr: () => el("hr"),
  math: formula,
};

/** Element of a block; a kind that is not known shows its source. */
const block = (token) => (BLOCKS[token.type] ?? (({ raw }) => el("p", { textContent: raw })))(token);

function checkbox({ checked }) {
  return el("input", { type: "checkbox", checked, disabled: true, "aria-label": checked ? "done" : "open" });
}

function code({ lang, text }) {
  const language = (lang ?? "").trim().split(/\s/)[0];
  const content = el("code", {}, document.createTextNode(text));
  const label = language ? `Code, ${language}` : "Code";
  return el(
    "div",
    { className: "code" },
    el("div", { className: "code-head" }, el("span", { textContent: language }), copyButton(() => content.textContent)),
    el("pre", { tabIndex: 0, role: "region", "aria-label": label }, content),
  );
}

function table({ header, rows }) {
  const row = (tag, cells) => el("tr", {}, ...cells.map((cell) => tableCell(tag, cell)));
  const body = rows.length ? el("tbody", {}, ...rows.map((cells) => row("td", cells))) : null;
  const node = el("table", {}, el("thead", {}, row("th", header)), body);
  return el("div", { className: "table", tabIndex: 0, role: "region", "aria-label": "Table" }, node);
}

function tableCell(tag, { align, tokens }) {
  const cell = inline(el(tag), tokens);
  if (align) cell.style.textAlign = align;
  return cell;
}

/** Append inline tokens to `node` and return it. */
function inline(node, tokens) {
  for (const token of tokens) node.append((INLINES[token.type] ?? plain)(token));
  return node;
}

const plain = ({ raw }) => raw;

const INLINES = {
  text: ({ text, tokens }) => (tokens ? inline(el("span"), tokens) : withoutEntities(text)),
  escape: ({ text }) => text,
  strong: ({ tokens }) => inline(el("strong"), tokens),
  em: ({ tokens }) => inline(el("em"), tokens),
  del: ({ tokens }) => inline(el("del"), tokens),
  codespan: ({ text }) => el("code", { textContent: text }),
  br: () => el("br"),
  checkbox,
  math: formula,
  link: ({ raw, href, tokens }) => link(raw, href, (node) => inline(node, tokens)),
  // Pictures are not loaded: their addresses could carry the conversation to somebody else.
  image: ({ raw, href, text }) => link(raw, href, (node) => (node.append(text || href), node)),
};

/** A link to the outside; for other schemes (javascript: and the like) and relative addresses its source. */
function link(raw, address, fillIn) {
  const href = withoutEntities(address).trim();
  if (!LINK.test(href)) return raw;
  return fillIn(el("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }));
}

/** Text with its character references (&amp; and the like) read. Each is parsed alone: no markup can come of it. */
function withoutEntities(text) {
  return text.replace(ENTITY, (entity) => new DOMParser().parseFromString(entity, "text/html").body.textContent);
}
