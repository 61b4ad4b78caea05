/** The page: asks a question about a picture with few visual tokens and with all, and shows both. */

import { ApiError, listModels, readConfig } from "./api.js";
import { ask, newConversation } from "./conversation.js";
import { byId, element } from "./dom.js";
import { clearError, clearErrors, controlsOf, FieldError, fieldError, showError } from "./errors.js";
import { enteredKey, prepareForm, readSettings, restoreSettings, setModels, setTokensOfPicture } from "./form.js";
import { remember, showHistory } from "./history.js";
import { readPicture } from "./picture.js";
import { announce, showConversation } from "./results.js";
import { showScenes } from "./scenes.js";
import { acceptFiles } from "./sources.js";

/**
 * @typedef {import("./conversation.js").Conversation} Conversation
 * @typedef {import("./picture.js").Picture} Picture
 */

const MODELS_AGAIN_MS = 3000;

const form = byId("ask", HTMLFormElement);
const askButton = byId("ask-button", HTMLButtonElement);
const stopButton = byId("stop-button", HTMLButtonElement);

/** @type {import("./api.js").Config} */
let config;
/** @type {Picture | null} */
let picture = null;
/** Looks for models again. @type {ReturnType<typeof setTimeout> | undefined} */
let timer;
/** Ends the requests that run. @type {AbortController | null} */
let running = null;

/** @param {Picture} chosen */
function setPicture(chosen) {
  picture = chosen;
  clearError("picture");
  setTokensOfPicture(null);
  const images = chosen.frames.map(({ thumbnail }, i) =>
    element("img", { src: thumbnail, alt: chosen.video ? `Frame ${i + 1}` : chosen.description || "The chosen picture" }),
  );
  byId("preview", HTMLElement).replaceChildren(...images);
  byId("picture-name", HTMLElement).textContent = chosen.name;
  byId("field-fps", HTMLElement).hidden = !chosen.video;
  byId("suggestions", HTMLElement).hidden = true; // they suit the scene that was chosen before
}

/**
 * @param {File[]} files
 * @param {string} [description]
 */
async function choose(files, description) {
  if (files.length === 0) return;
  try {
    setPicture(await readPicture(files, config, description));
    announce(files.length === 1 ? "Picture chosen." : `Video of ${files.length} frames chosen.`);
  } catch (error) {
    report(error);
  }
}

/** Reads the models, and tries again until there are some. */
async function loadModels() {
  clearTimeout(timer);
  if (config.key_needed && enteredKey() === "") return;
  clearError("key");
  clearError("model");
  try {
    const models = await listModels(enteredKey());
    setModels(models);
    if (models.length > 0) return;
    throw new FieldError("model", "No model is ready yet. The page looks again every few seconds.");
  } catch (error) {
    report(error);
    if (error instanceof ApiError && (error.status === 401 || error.status === 403)) return; // waits for another key
    timer = setTimeout(loadModels, MODELS_AGAIN_MS);
  }
}

async function submit() {
  if (running !== null) return;
  clearErrors();
  let conversation;
  try {
    if (config.key_needed && enteredKey() === "") throw new FieldError("key", "This gateway needs a key. Enter yours.");
    if (picture === null) throw new FieldError("picture", "Choose a picture, or one of the drawn scenes.");
    conversation = newConversation(picture, readSettings());
  } catch (error) {
    report(error);
    if (error instanceof FieldError) controlsOf(error.field)[0]?.focus();
    return;
  }
  running = new AbortController();
  setBusy(true);
  const shown = conversation;
  showConversation(shown);
  bringIntoView(byId("results", HTMLElement));
  try {
    await ask(shown, enteredKey(), running.signal, () => showConversation(shown));
  } catch (error) {
    report(error);
  } finally {
    running = null;
    setBusy(false);
  }
  if (picture === shown.picture) setTokensOfPicture(shown.few.image?.source_tokens ?? null);
  if (shown.few.phase !== "failed") remember(shown, restore);
}

/** @param {boolean} busy */
function setBusy(busy) {
  // Not `disabled`: that would take the focus away from whoever has just pressed it.
  askButton.setAttribute("aria-disabled", String(busy));
  if (!busy && document.activeElement === stopButton) askButton.focus();
  stopButton.hidden = !busy;
}

/** @param {Conversation} conversation */
function restore(conversation) {
  if (running !== null) return;
  clearErrors();
  setPicture(conversation.picture);
  setTokensOfPicture(conversation.few.image?.source_tokens ?? null);
  restoreSettings(conversation.settings);
  showConversation(conversation);
  showHistory(conversation, restore);
  bringIntoView(byId("results", HTMLElement));
}

/** @param {HTMLElement} place */
function bringIntoView(place) {
  const { top } = place.getBoundingClientRect();
  if (top > window.innerHeight / 2 || top < 0) place.scrollIntoView({ block: "start" });
}

/**
 * Shows what went wrong next to what caused it. What is no fault of input or gateway goes to the browser's console too.
 * @param {unknown} error
 */
function report(error) {
  if (error instanceof FieldError) showError(error);
  else if (error instanceof ApiError) showError(fieldError(error));
  else {
    showError(new FieldError("request", "The page failed. Load it again; the browser's console says more."));
    console.error(error);
  }
}

async function start() {
  prepareForm();
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  byId("question", HTMLTextAreaElement).addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  stopButton.addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
  byId("key", HTMLInputElement).addEventListener("change", loadModels);
  try {
    config = await readConfig();
    byId("version", HTMLElement).textContent = `version ${config.version}`;
    byId("field-key", HTMLElement).hidden = !config.key_needed;
    if (config.grafana_url !== null) {
      byId("links", HTMLElement).append(element("li", {}, element("a", { href: config.grafana_url }, "Grafana")));
    }
    acceptFiles(choose);
    await Promise.all([showScenes(choose), loadModels()]);
  } catch (error) {
    report(error);
  }
}

start();
