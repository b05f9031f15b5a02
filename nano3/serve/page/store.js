// What this browser keeps: conversation and settings in localStorage, the API key in sessionStorage.

const CHAT = "nano3.chat";
const PREVIOUS = "nano3.chat.previous";
const SETTINGS = "nano3.settings";
const TEXT = "nano3.text";
const TEXT_SETTINGS = "nano3.text.settings";
const KEY = "nano3.key";
/** `thinking`: true or false, or null while the reader has left it to the model. */
const DEFAULTS = {
  model: "", system: "", thinking: null, budget: "", maxTokens: "", temperature: "", topP: "", seed: "", tools: "",
};

const TEXT_DEFAULTS = { model: "", length: "64", temperature: "0.7", topP: "", seed: "", stopAt: "" };

function get(storage, name) {
  try {
    return storage.getItem(name);
  } catch {
    return null; // storage is switched off: the page works, and forgets
  }
}

function set(storage, name, text) {
  try {
    if (text) storage.setItem(name, text);
    else storage.removeItem(name);
  } catch {
    // full or switched off
  }
}

function getJson(name, fallback) {
  try {
    return JSON.parse(get(localStorage, name)) ?? fallback;
  } catch {
    return fallback;
  }
}

/** Turns of the conversation, oldest first. */
export function loadTurns() {
  return settled(getJson(CHAT, []));
}

/** Turns with an answer that was still coming when the page was left shown as stopped. */
function settled(turns) {
  if (!Array.isArray(turns)) return [];
  const last = turns.at(-1);
  if (last?.role === "assistant" && !last.finish && !last.error) {
    last.stopped = true;
    if (last.thinkingFrom !== undefined) last.thinkingMs ??= 0;
  }
  return turns;
}

export function saveTurns(turns) {
  set(localStorage, CHAT, turns.length ? JSON.stringify(turns) : "");
}

/** Put the conversation away for `takePrevious`. */
export function keepPrevious(turns) {
  set(localStorage, PREVIOUS, JSON.stringify(turns));
}

export const hasPrevious = () => get(localStorage, PREVIOUS) !== null;

export function takePrevious() {
  const turns = settled(getJson(PREVIOUS, []));
  set(localStorage, PREVIOUS, "");
  return turns;
}

/** The text to continue and the model's parts of it; null where none was kept. */
export function loadText() {
  const kept = getJson(TEXT, null);
  return typeof kept?.text === "string" && Array.isArray(kept.parts) ? kept : null;
}

export const saveText = (written) => set(localStorage, TEXT, JSON.stringify(written));

function load(name, defaults) {
  return { ...defaults, ...getJson(name, {}), apiKey: get(sessionStorage, KEY) ?? "" };
}

function save(name, { apiKey, ...settings }) {
  set(localStorage, name, JSON.stringify(settings));
  set(sessionStorage, KEY, apiKey);
}

export const defaultSettings = () => ({ ...DEFAULTS, apiKey: "" });
export const loadSettings = () => load(SETTINGS, DEFAULTS);
export const saveSettings = (settings) => save(SETTINGS, settings);
export const defaultTextSettings = () => ({ ...TEXT_DEFAULTS, apiKey: "" });
export const loadTextSettings = () => load(TEXT_SETTINGS, TEXT_DEFAULTS);
export const saveTextSettings = (settings) => save(TEXT_SETTINGS, settings);
