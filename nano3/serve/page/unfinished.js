// Markdown that is still being written: its end, completed to what it will most likely become, so that nothing flickers.

import { formulaAt } from "./math.js";

const FENCE = /^\s*(`{3,}|~{3,})/;
/** A last line of these alone may become a list, a rule, a heading or a table: it waits for its next letter. */
const ONLY_MARKS = /^\s*(?:[-=*+#>~_|:`\s]+|\d{1,9}[.)]?\s*)$/;
/** The address that a reference link will have: of use when it is whole. */
const DEFINITION = /^ {0,3}\[[^\]]+\]:/;
const BEGINS = /^\s*(?:(?:[-*+]|\d{1,9}[.)]|#{1,6}|>)\s+)+|^\s*\|/;
const MATH_BLOCKS = /^ {0,3}(?:\$\$[^$]*\$\$|\\\[[^]*?\\\])/gm;
const OPEN_MATH = /(?:^|\n) {0,3}(?:\$\$|\\\[(?![^]*\\\]))[^$]*$/;
const LINK = /^!?\[[^\[\]\n]*\]\([^()\s]*(?:\([^()\s]*\)[^()\s]*)*(?:\s+"[^"\n]*")?\)/;
const OPEN_LINK = /^!?\[([^\[\]\n]+)\]\([^)\n]*$/;

/** `text` up to its last whole thing, with marks that are open closed. */
export function completed(text) {
  const lines = text.split("\n");
  const last = lines.at(-1);
  const fence = openFence(lines);
  if (fence) return last.trim() && fence.startsWith(last.trim()) && lines.length > 1 ? lines.slice(0, -1).join("\n") : text;
  if (OPEN_MATH.test(text.replace(MATH_BLOCKS, ""))) return text;
  const table = openTable(lines);
  if (table) return table;
  if (last && (ONLY_MARKS.test(last) || DEFINITION.test(last))) return lines.slice(0, -1).join("\n");
  const start = lines.findLastIndex((line) => !line.trim() || BEGINS.test(line));
  const from = Math.max(start, 0);
  const begin = lines[from].match(BEGINS)?.[0] ?? "";
  const segment = lines.slice(from).join("\n").slice(begin.length);
  return [...lines.slice(0, from), begin + closed(segment)].join("\n");
}

/** The mark of a fence that is open at the end; null where none is. */
function openFence(lines) {
  let open = null;
  for (const line of lines) {
    const mark = line.match(FENCE)?.[1];
    if (!open) open = mark ?? null;
    else if (mark?.startsWith(open) && line.trim() === mark) open = null;
  }
  return open;
}

/** A table whose head has begun, with the rule below it; null for anything else. */
function openTable(all) {
  const lines = all.at(-1) ? all : all.slice(0, -1);
  const start = lines.findLastIndex((line) => !line.trim()) + 1;
  const [head, rule, ...rows] = lines.slice(start);
  if (!/^ {0,3}\|\s*[^\s|]/.test(head ?? "") || rows.length || (rule ?? "").replace(/[-:|\s]/g, "")) return null;
  const whole = /(?<!\\)\|\s*$/.test(head) ? head : `${head} |`;
  const columns = whole.match(/(?<!\\)\|/g).length - 1;
  return [...lines.slice(0, start), whole, `|${" --- |".repeat(columns)}`].join("\n");
}

/** Inline text with what is open in it closed: emphasis, code, the address of a link. */
function closed(text) {
  const open = [];
  let at = 0;
  while (at < text.length) {
    const rest = text.slice(at);
    const letter = text[at];
    let length = 1;
    if (letter === "\\") length = formulaAt(rest)?.raw.length ?? 2;
    else if (letter === "$") length = formulaAt(rest)?.raw.length ?? 1;
    else if (letter === "[") {
      const unfinished = rest.match(OPEN_LINK);
      if (unfinished) return text.slice(0, at).replace(/!$/, "") + unfinished[1] + ends(open);
      length = rest.match(LINK)?.[0].length ?? 1;
    } else if ("`*_~".includes(letter)) {
      const mark = rest.match(letter === "`" ? /^`+/ : letter === "*" ? /^\*+/ : letter === "_" ? /^_+/ : /^~+/)[0];
      length = mark.length;
      if (length === rest.trimEnd().length) return finishedAt(text, at, mark, open);
      if (letter === "`") {
        const end = rest.slice(length).search(new RegExp(`(?<!\`)\`{${length}}(?!\`)`));
        if (end < 0) return text + (text.endsWith("`") ? " " : "") + mark + ends(open);
        length += end + length;
      } else emphasis(text, at, mark, open);
    }
    at += length;
  }
  return text + ends(open);
}

/** The text ends in a mark: one that closes what is open is kept, any other waits for its next letter. */
function finishedAt(text, at, mark, open) {
  if (open.at(-1) === mark) return text;
  return text.slice(0, at).trimEnd() + ends(open);
}

function emphasis(text, at, mark, open) {
  const before = text[at - 1] ?? " ";
  const after = text[at + mark.length] ?? " ";
  if (mark[0] === "~" && mark.length !== 2) return;
  const known = open.lastIndexOf(mark);
  if (known >= 0 && /\S/.test(before)) open.length = known;
  else if (/\S/.test(after) && !/\w/.test(before)) open.push(mark);
}

const ends = (open) => open.toReversed().join("");
