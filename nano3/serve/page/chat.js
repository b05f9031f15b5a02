// The chat page: ties conversation, settings and server together.

import { newAnswer, Assembler, parseTools, requestBody } from "./answer.js";
import { streamChat } from "./api.js";
import { connect as findModel } from "./connection.js";
import * as store from "./store.js";
import { AnswerView, userTurn } from "./turns.js";

const $ = (id) => document.getElementById(id);
const state = { turns: store.loadTurns(), settings: store.loadSettings(), running: null, sticking: true, base: false };
const SAVE_EVERY_MS = 500;
const NEAR_END = 60;

const views = new WeakMap(); // turn -> AnswerView: what is folded open stays so

const announce = (text) => ($("status").textContent = text);

const actions = {
  retry: () => regenerate(),
  settings: () => openSettings(),
  newChat: () => newChat(),
  sendResults: (results) => sendResults(results),
};

/** Build the whole conversation anew. */
function showTurns() {
  const { turns } = state;
  const lastUser = turns.findLastIndex((turn) => turn.role === "user");
  const nodes = turns.map((turn, i) => {
    if (turn.role === "user") return userTurn(turn, i === lastUser && !state.running ? (text) => edit(i, text) : null);
    if (!views.has(turn)) views.set(turn, new AnswerView(turn, actions));
    const view = views.get(turn);
    view.update(state.running?.turn === turn, i === turns.length - 1);
    return view.node;
  });
  $("turns").replaceChildren(...nodes);
  $("welcome").hidden = turns.length > 0;
  $("restore").hidden = !store.hasPrevious();
  $("send").hidden = Boolean(state.running);
  $("stop").hidden = !state.running;
  stick();
}

function send(text) {
  state.turns.push({ role: "user", text });
  state.sticking = true;
  answer();
}

function edit(index, text) {
  state.turns.length = index;
  send(text);
}

function regenerate() {
  if (state.running) return;
  if (state.turns.at(-1)?.role === "assistant") state.turns.pop();
  if (state.turns.length) answer();
}

function sendResults(results) {
  state.turns.at(-1).calls.forEach((call, i) => (call.result = results[i]));
  answer();
}

function newChat() {
  stop();
  if (state.turns.length) store.keepPrevious(state.turns);
  state.turns = [];
  store.saveTurns([]);
  showTurns();
  $("prompt").focus();
}

function stop() {
  state.running?.controller.abort();
}

/** Ask for the answer to the conversation as it is, and show it while it comes. */
async function answer() {
  const controller = new AbortController();
  const turn = newAnswer();
  const run = { controller, turn };
  const { turns } = state;
  state.running = run;
  turns.push(turn);
  showTurns();
  announce("Waiting for the answer");
  const assembler = new Assembler(turn);
  const clock = setInterval(() => views.get(turn).update(true, true), 200);
  try {
    await receive(run, assembler, turns);
    announce("Answer complete");
  } catch (error) {
    if (error.name === "AbortError") turn.stopped = true;
    else turn.error = { kind: error.kind ?? "server", message: error.message, retryAfter: error.retryAfter ?? null };
    announce(turn.stopped ? "Stopped" : "The request failed");
  }
  clearInterval(clock);
  assembler.finish();
  if (state.running === run) state.running = null;
  if (state.turns !== turns) return; // a new chat was begun meanwhile
  store.saveTurns(turns);
  const lostFocus = document.activeElement === $("stop") || document.activeElement === document.body;
  showTurns();
  if (lostFocus && matchMedia("(pointer: fine)").matches) $("prompt").focus();
}

async function receive(run, assembler, turns) {
  if (!state.settings.model) await connect();
  const body = requestBody(turns.slice(0, -1), state.settings);
  let frame = 0;
  let saved = performance.now();
  const draw = () => {
    frame = 0;
    if (state.running !== run) return;
    views.get(run.turn).update(true, true);
    stick();
  };
  for await (const chunk of streamChat(body, state.settings.apiKey, run.controller.signal)) {
    assembler.add(chunk);
    frame ||= requestAnimationFrame(draw);
    if (state.turns === turns && performance.now() - saved > SAVE_EVERY_MS) {
      store.saveTurns(turns);
      saved = performance.now();
    }
  }
}

/** Stay at the end while text comes, unless the reader has scrolled away from it. */
function stick() {
  const scroller = $("scroller");
  if (state.sticking) scroller.scrollTop = scroller.scrollHeight;
  showEndButton();
}

function showEndButton() {
  const scroller = $("scroller");
  $("to-end").hidden = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_END * 3;
}

/** Ask the server for its model; what the server says where it wants an API key first, else null. */
async function connect() {
  const { model, wantsKey } = await findModel($("model"), state.settings);
  if (model) {
    state.base = model.thinking_default === false;
    showThinking();
  }
  return wantsKey;
}

/** Nothing works without a key, so it is asked for before anything is typed. */
async function begin() {
  const wantsKey = await connect();
  if (!wantsKey || $("settings").open) return;
  openSettings();
  $("key-note").textContent = wantsKey;
  $("key-note").hidden = false;
  $("settings").querySelector("[name=apiKey]").focus();
}

/** A base model thinks only when told to. */
function showThinking() {
  $("thinking").checked = state.settings.thinking ?? !state.base;
  $("base-note").hidden = !state.base;
}

function openSettings() {
  fillSettings();
  $("key-note").hidden = true;
  $("settings").showModal();
}

function fillSettings() {
  for (const field of $("settings").querySelectorAll("[name]")) field.value = state.settings[field.name];
  checkTools();
}

function checkTools() {
  const shown = $("tools-error");
  shown.hidden = true;
  try {
    parseTools(state.settings.tools);
  } catch (error) {
    shown.textContent = error.message;
    shown.hidden = false;
  }
}

function changeSetting(event) {
  const { name, value } = event.target;
  state.settings[name] = value;
  store.saveSettings(state.settings);
  if (name === "tools") checkTools();
}

function resetSettings() {
  const { model } = state.settings;
  state.settings = { ...store.defaultSettings(), model };
  store.saveSettings(state.settings);
  showThinking();
  fillSettings();
}

function growPrompt() {
  const prompt = $("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight, window.innerHeight * 0.4)}px`;
}

function submitPrompt(event) {
  event.preventDefault();
  const prompt = $("prompt");
  if (state.running || !prompt.value.trim()) return;
  const text = prompt.value;
  prompt.value = "";
  growPrompt();
  send(text);
}

function listen() {
  $("composer").addEventListener("submit", submitPrompt);
  $("prompt").addEventListener("input", growPrompt);
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submitPrompt(event);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !$("settings").open) stop();
  });
  $("stop").addEventListener("click", stop);
  $("new").addEventListener("click", newChat);
  $("restore").addEventListener("click", () => {
    state.turns = store.takePrevious();
    store.saveTurns(state.turns);
    showTurns();
  });
  $("open-settings").addEventListener("click", openSettings);
  $("settings").addEventListener("input", changeSetting);
  $("settings").addEventListener("close", connect);
  $("reset").addEventListener("click", resetSettings);
  $("thinking").addEventListener("change", (event) => {
    state.settings.thinking = event.target.checked;
    store.saveSettings(state.settings);
  });
  $("model").addEventListener("change", (event) => {
    state.settings.model = event.target.value;
    store.saveSettings(state.settings);
  });
  $("scroller").addEventListener("scroll", () => {
    const scroller = $("scroller");
    state.sticking = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_END;
    showEndButton();
  });
  $("to-end").addEventListener("click", () => {
    state.sticking = true;
    stick();
  });
  for (const leaving of ["beforeunload", "pagehide"]) {
    window.addEventListener(leaving, () => {
      stop(); // else the broken request would be kept as an error
      if (state.turns.length) store.saveTurns(state.turns);
    });
  }
}

showThinking();
listen();
showTurns();
begin();
