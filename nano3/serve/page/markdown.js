// Markdown to DOM nodes, as much of it as models write: code, headings, lists, quotes, tables, emphasis, links.
// Model text becomes text nodes only, so nothing in it can turn into markup.

import { copyButton, el } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^(#{1,6})\s+(.*?)\s*#*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(?:\s+(.*)|)$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

/** Show `text` in `target`; blocks that did not change since the last call keep their nodes. */
export function show(target, text) {
  const blocks = split(text);
  const shown = [...target.children];
  blocks.forEach((block, i) => {
    if (shown[i]?.source === block) return;
    const node = render(block.split("\n"));
    node.source = block;
    if (shown[i]) shown[i].replaceWith(node);
    else target.append(node);
  });
  shown.slice(blocks.length).forEach((node) => node.remove());
}

/** Source texts of the blocks: parts between empty lines; a fence and a list hold theirs together. */
function split(text) {
  const blocks = [];
  let lines = [];
  let fence = null;
  const flush = () => {
    while (lines.length && !lines.at(-1).trim()) lines.pop();
    if (lines.length) blocks.push(lines.join("\n"));
    lines = [];
  };
  for (const line of text.split("\n")) {
    const mark = line.match(FENCE)?.[1];
    if (fence) {
      lines.push(line);
      if (mark?.startsWith(fence) && line.trim() === mark) {
        fence = null;
        flush();
      }
    } else if (mark) {
      flush();
      fence = mark;
      lines.push(line);
    } else if (startsBlock(line, lines)) {
      flush();
      if (line.trim()) lines.push(line);
      if (HEADING.test(line) || isRule(line)) flush();
    } else lines.push(line);
  }
  flush();
  return blocks;
}

const isRule = (line) => RULE.test(line);

function startsBlock(line, lines) {
  if (!lines.length) return true;
  const inList = ITEM.test(lines[0]) && !isRule(lines[0]);
  if (HEADING.test(line) || isRule(line)) return true;
  if (!line.trim()) return !inList;
  const isItem = ITEM.test(line);
  if (inList) return !lines.at(-1).trim() && !isItem && !/^\s{2,}/.test(line);
  return isItem && !/^>/.test(lines[0]) && /^\s*([-*+]|1[.)])\s/.test(line);
}

function render(lines) {
  const first = lines[0];
  const fence = first.match(FENCE);
  if (fence) return code(lines, fence);
  const heading = first.match(HEADING);
  if (heading) return inlineInto(el(`h${Math.min(heading[1].length + 2, 6)}`), heading[2]);
  if (isRule(first)) return el("hr");
  if (ITEM.test(first)) return list(lines);
  if (first.startsWith(">")) return quote(lines);
  if (lines.length > 1 && first.includes("|") && TABLE_RULE.test(lines[1])) return table(lines);
  return inlineInto(el("p"), lines.join("\n"));
}

function code(lines, [, mark, info]) {
  const closed = lines.length > 1 && lines.at(-1).trim().startsWith(mark);
  const indent = new RegExp(`^ {0,${lines[0].search(/\S/)}}`); // as deep as a list's item that the code stands in
  const text = lines.slice(1, closed ? -1 : undefined).map((line) => line.replace(indent, "")).join("\n");
  return el(
    "div",
    { className: "code" },
    el("div", { className: "code-head" }, el("span", { textContent: info.trim().split(/\s/)[0] }), copyButton(() => text)),
    el("pre", { tabIndex: 0 }, el("code", { textContent: text })),
  );
}

function quote(lines) {
  const node = el("blockquote");
  show(node, lines.map((line) => line.replace(/^>\s?/, "")).join("\n"));
  return node;
}

/** A list; lines indented deeper than an item's mark belong to the item. */
function list(lines) {
  const [, indent, mark] = lines[0].match(ITEM);
  const ordered = /\d/.test(mark);
  const node = el(ordered ? "ol" : "ul");
  if (ordered) node.start = Number.parseInt(mark, 10);
  let item = [];
  const flush = () => item.length && node.append(listItem(item));
  for (const line of lines) {
    const found = line.match(ITEM);
    if (found && found[1].length <= indent.length + 1) {
      flush();
      item = [found[3] ?? ""];
    } else item.push(line);
  }
  flush();
  return node;
}

function listItem([first, ...rest]) {
  const node = el("li");
  const depth = Math.min(...rest.filter((line) => line.trim()).map((line) => line.match(/^\s*/)[0].length));
  const body = rest.map((line) => line.slice(Number.isFinite(depth) ? Math.min(depth, 8) : 0));
  inlineInto(node, first);
  if (body.some((line) => line.trim())) {
    const inner = el("div");
    show(inner, body.join("\n"));
    node.append(inner);
  }
  return node;
}

const cells = (line) =>
  line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));

function table(lines) {
  const row = (tag, line) => el("tr", {}, ...cells(line).map((cell) => inlineInto(el(tag), cell)));
  const head = el("thead", {}, row("th", lines[0]));
  const body = el("tbody", {}, ...lines.slice(2).map((line) => row("td", line)));
  return el("div", { className: "table", tabIndex: 0 }, el("table", {}, head, body));
}

// Alternatives in order: code, strong, emphasis, strike-through, link, bare address, escaped mark, line break.
const INLINE = new RegExp(
  [
    /(?<tick>`+)(?<code>[^`]|[^`][\s\S]*?[^`])\k<tick>(?!`)/,
    /\*\*(?<strong>\S(?:[\s\S]*?\S)??)\*\*/,
    /(?<![*\w])\*(?<star>[^\s*](?:[^*]*[^\s*])?)\*(?!\*)/,
    /(?<!\w)_(?<low>[^\s_](?:[^_]*[^\s_])?)_(?!\w)/,
    /~~(?<strike>[^~]+)~~/,
    /\[(?<label>[^\]\n]+)\]\((?<href>[^()\s]*(?:\([^()\s]*\)[^()\s]*)*)\)/,
    /(?<bare>https?:\/\/[^\s<>()]*[^\s<>().,;:!?'"])/,
    /\\(?<escaped>[\\`*_{}[\]()#+\-.!|~>])/,
    /(?<br> {2,}\n|<br\s*\/?>)/,
  ].map((part) => part.source).join("|"),
  "g",
);

/** Append inline Markdown to `node` and return it. */
function inlineInto(node, text) {
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    node.append(text.slice(end, match.index), inlineNode(match));
    end = match.index + match[0].length;
  }
  node.append(text.slice(end));
  return node;
}

function inlineNode({ 0: source, groups: g }) {
  if (g.code !== undefined) return el("code", { textContent: g.code.replace(/^ (.*) $/s, "$1") });
  if (g.strong !== undefined) return inlineInto(el("strong"), g.strong);
  if (g.star !== undefined || g.low !== undefined) return inlineInto(el("em"), g.star ?? g.low);
  if (g.strike !== undefined) return inlineInto(el("del"), g.strike);
  if (g.escaped !== undefined) return g.escaped;
  if (g.br !== undefined) return el("br");
  return link(g.bare ?? g.href, g.label ?? g.bare) ?? source;
}

/** A link to the outside; null for other schemes (javascript: and the like) and relative addresses. */
function link(href, label) {
  if (!/^(https?:\/\/|mailto:)/i.test(href)) return null;
  const node = el("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" });
  if (href !== label) return inlineInto(node, label);
  node.textContent = label;
  return node;
}
