// One answer: the request body from the conversation, and the streamed chunks put together.

const NUMBERS = { budget: "thinking_budget", maxTokens: "max_tokens", temperature: "temperature", topP: "top_p", seed: "seed" };

export const newAnswer = () => ({ role: "assistant", text: "", reasoning: "", calls: [] });

/** Body of the request for the answer to `turns`; fields left empty in the settings are left out. */
export function requestBody(turns, settings) {
  const body = { model: settings.model, messages: messages(turns, settings.system) };
  if (settings.thinking !== null) body.enable_thinking = settings.thinking;
  for (const [field, name] of Object.entries(NUMBERS)) {
    const value = settings[field];
    const idle = field === "budget" && settings.thinking === false;
    if (value !== "" && !idle && Number.isFinite(Number(value))) body[name] = Number(value);
  }
  const tools = parseTools(settings.tools);
  if (tools?.length) body.tools = tools;
  return body;
}

/** The list of tools in `text`; null when it is empty. Throws Error that says what is wrong with it. */
export function parseTools(text) {
  if (!text.trim()) return null;
  let tools;
  try {
    tools = JSON.parse(text);
  } catch (error) {
    throw new Error(`The tools in the settings are not JSON: ${error.message}`);
  }
  if (!Array.isArray(tools) || tools.some((tool) => !tool?.function?.name)) {
    throw new Error('The tools in the settings must be a list of {"type": "function", "function": {"name": …}}.');
  }
  return tools;
}

function messages(turns, system) {
  const list = system.trim() ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    if (turn.role === "user") list.push({ role: "user", content: turn.text });
    else list.push(...answerMessages(turn));
  }
  return list;
}

function answerMessages(turn) {
  if (turn.error && !turn.text && !turn.calls.length) return [];
  const message = { role: "assistant", content: turn.text };
  if (turn.reasoning) message.reasoning = turn.reasoning;
  if (!turn.calls.length) return [message];
  message.tool_calls = turn.calls.map((call) => ({
    id: call.id, type: "function", function: { name: call.name, arguments: call.arguments || "{}" },
  }));
  const results = turn.calls.filter((call) => call.result !== undefined);
  return [message, ...results.map((call) => ({ role: "tool", tool_call_id: call.id, content: call.result }))];
}

/** Adds streamed chunks to a turn and keeps its times. */
export class Assembler {
  constructor(turn) {
    this.turn = turn;
    this.start = performance.now();
    this.first = null;
    this.last = null;
  }

  add(chunk) {
    const choice = chunk.choices?.[0];
    if (choice) this.addDelta(choice.delta ?? {});
    if (choice?.finish_reason) this.turn.finish = choice.finish_reason;
    if (chunk.usage) this.usage = chunk.usage;
  }

  addDelta(delta) {
    const { turn } = this;
    const reasoning = delta.reasoning ?? delta.reasoning_content ?? "";
    const calls = delta.tool_calls ?? [];
    if (!reasoning && !delta.content && !calls.length) return;
    this.last = performance.now();
    this.first ??= this.last;
    if (reasoning) {
      turn.thinkingFrom ??= Date.now();
      turn.reasoning += reasoning;
    }
    if (delta.content || calls.length) this.endThinking();
    turn.text += delta.content ?? "";
    calls.forEach((call) => this.addCall(call));
  }

  addCall({ index = 0, id, function: called = {} }) {
    const call = (this.turn.calls[index] ??= { id: id ?? `call-${index}`, name: "", arguments: "" });
    call.id = id ?? call.id;
    call.name += called.name ?? "";
    call.arguments += called.arguments ?? "";
  }

  endThinking() {
    const { turn } = this;
    // At least 1: 0 stands for a time that nobody knows.
    if (turn.thinkingFrom !== undefined) turn.thinkingMs ??= Math.max(1, Date.now() - turn.thinkingFrom);
  }

  /** After the last chunk, whatever the reason that it was the last. */
  finish() {
    this.endThinking();
    delete this.turn.thinkingFrom;
    this.turn.calls = this.turn.calls.filter(Boolean);
    if (this.first === null) return;
    this.turn.stats = { firstMs: this.first - this.start, streamMs: this.last - this.first };
    const { usage } = this;
    if (usage) {
      this.turn.stats.tokens = usage.completion_tokens;
      this.turn.stats.promptTokens = usage.prompt_tokens;
      this.turn.stats.cachedTokens = usage.prompt_tokens_details?.cached_tokens ?? 0;
    }
  }
}
