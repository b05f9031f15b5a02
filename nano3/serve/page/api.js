// Talks to the server: the list of models, and answers as they are streamed.

/** An error to show in the conversation: `kind` is auth, busy, length, gone, cut or server. */
export class ApiError extends Error {
  constructor(kind, message, retryAfter = null) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }
}

const headers = (apiKey) => ({
  "Content-Type": "application/json",
  ...(apiKey ? { Authorization: `Bearer ${apiKey}` } : {}),
});

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("gone", "The server cannot be reached. It may have stopped, or the network is down.");
  }
}

/** The models that the server offers: [{id, max_model_len?, thinking_default?, base_model?, opening?}]. */
export async function listModels(apiKey) {
  const response = await reach("v1/models", { headers: headers(apiKey) });
  if (!response.ok) throw await errorOf(response, apiKey);
  return (await response.json()).data;
}

async function errorOf(response, apiKey) {
  const text = await response.text().catch(() => "");
  let error = {};
  try {
    const body = JSON.parse(text);
    error = body.error ?? { message: typeof body.detail === "string" ? body.detail : "" };
  } catch {
    error = {};
  }
  const message = error.message || "";
  if (response.status === 401 || response.status === 403) {
    return new ApiError("auth", apiKey ? "The server does not accept this API key." : "The server wants an API key.");
  }
  if (response.status === 429 || (response.status === 503 && response.headers.has("Retry-After"))) {
    const seconds = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
    return new ApiError("busy", "The server is busy with other requests.", Number.isNaN(seconds) ? null : seconds);
  }
  if (error.code === "context_length_exceeded" || /context|too long/i.test(message)) {
    return new ApiError("length", message);
  }
  return new ApiError("server", message || `The server answered ${response.status} ${response.statusText}`.trim() + ".");
}

export const streamChat = (body, apiKey, signal) => stream("v1/chat/completions", body, apiKey, signal);
export const streamText = (body, apiKey, signal) => stream("v1/completions", body, apiKey, signal);

/**
 * Ask for one output; yields chunk objects as they arrive.
 * Throws ApiError, or the AbortError of `signal`.
 */
async function* stream(path, body, apiKey, signal) {
  const response = await reach(path, {
    method: "POST",
    headers: headers(apiKey),
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) throw await errorOf(response, apiKey);
  let finished = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = parse(data);
    if (chunk.error) throw new ApiError("server", chunk.error.message || "The server failed while answering.");
    finished ||= chunk.choices?.some((choice) => choice.finish_reason) ?? false;
    yield chunk;
  }
  if (!finished) throw new ApiError("cut", "The connection ended before the answer did.");
}

function parse(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiError("server", "The server sent something that is not JSON.");
  }
}

/** The data of each server-sent event in a byte stream. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  let data = [];
  for (;;) {
    const { value, done } = await read(reader);
    if (done) return;
    buffer += value;
    const lines = buffer.split(/\r\n|\n|\r(?!$)/);
    buffer = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      else if (line === "" && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("cut", "The connection broke before the answer was complete.");
  }
}
