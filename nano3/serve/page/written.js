// A text that reader and model write together: what the model wrote of it, and the way back and forth.

const MOST_STEPS = 100;

export class Written {
  /** `parts`: [from, to) of each part of `text` that the model wrote, in order. */
  constructor(text = "", parts = []) {
    this.text = text;
    this.parts = parts;
    this.past = [];
    this.future = [];
    this.typed = false; // since the model last wrote
  }

  /** The reader changed the text: the model's parts move along, and lose what was cut out of them. */
  edit(text) {
    if (text === this.text) return;
    const [start, end, newEnd] = difference(this.text, text);
    const shift = newEnd - end;
    const parts = [];
    for (const [from, to] of this.parts) {
      if (from < start) parts.push([from, Math.min(to, start)]);
      if (to > end) parts.push([Math.max(from, end) + shift, to + shift]);
    }
    this.parts = joined(parts, start === newEnd ? start : null);
    this.text = text;
    this.typed = true;
  }

  /** The model begins to write; `undo` comes back to here. */
  begin() {
    this.past.push(this.snapshot());
    if (this.past.length > MOST_STEPS) this.past.shift();
    this.future = [];
    this.typed = false;
  }

  /** The model wrote `text`. */
  append(text) {
    if (!text) return;
    const from = this.text.length;
    this.text += text;
    this.parts = joined([...this.parts, [from, this.text.length]], from);
  }

  /** A beginning that took the place of the text; it can be undone too. */
  replace(text) {
    this.begin();
    this.text = text;
    this.parts = [];
  }

  undo() {
    this.move(this.past, this.future);
  }

  redo() {
    this.move(this.future, this.past);
  }

  move(from, to) {
    const state = from.pop();
    if (!state) return;
    to.push(this.snapshot());
    Object.assign(this, state);
    this.typed = false;
  }

  snapshot() {
    return { text: this.text, parts: this.parts };
  }
}

/** [start, end, newEnd]: `before` from start to end became `after` from start to newEnd. */
function difference(before, after) {
  const shorter = Math.min(before.length, after.length);
  let start = 0;
  while (start < shorter && before[start] === after[start]) start++;
  let same = 0;
  while (same < shorter - start && before.at(-1 - same) === after.at(-1 - same)) same++;
  return [start, before.length - same, after.length - same];
}

/** Parts without empty ones; two that meet at `seam` become one. */
function joined(parts, seam) {
  const kept = [];
  for (const [from, to] of parts) {
    if (from >= to) continue;
    if (from === seam && kept.at(-1)?.[1] === seam) kept[kept.length - 1] = [kept.at(-1)[0], to];
    else kept.push([from, to]);
  }
  return kept;
}
