/** The form: reads its settings, and shows them again. */

import { budgetOf, describeBudget, describeStop, FIRST_CHOICE, LAST_STOP } from "./budget.js";
import { OWN_FIELDS } from "./conversation.js";
import { byId, element } from "./dom.js";
import { FieldError } from "./errors.js";

/**
 * @typedef {import("./api.js").Model} Model
 * @typedef {import("./conversation.js").Settings} Settings
 */

const question = byId("question", HTMLTextAreaElement);
const slider = byId("share", HTMLInputElement);
const model = byId("model", HTMLSelectElement);
const method = byId("method", HTMLSelectElement);
const options = byId("options", HTMLTextAreaElement);
const more = byId("more", HTMLTextAreaElement);
const maxTokens = byId("max-tokens", HTMLInputElement);
const temperature = byId("temperature", HTMLInputElement);
const fps = byId("fps", HTMLInputElement);
const key = byId("key", HTMLInputElement);

/** @type {Model[]} */
let models = [];
/** Tokens of the chosen picture; null until an answer tells them. @type {number | null} */
let tokensOfPicture = null;

export function prepareForm() {
  slider.max = String(LAST_STOP);
  slider.value = String(FIRST_CHOICE);
  slider.addEventListener("input", () => {
    byId("choice-share", HTMLInputElement).checked = true;
    showStop();
  });
  model.addEventListener("change", showMethods);
  showStop();
}

/** The key, without what a paste may bring along. */
export function enteredKey() {
  return key.value.trim();
}

/** @param {number | null} tokens of the chosen picture */
export function setTokensOfPicture(tokens) {
  tokensOfPicture = tokens;
  showStop();
}

function showStop() {
  const text = describeStop(Number(slider.value), tokensOfPicture);
  byId("share-text", HTMLOutputElement).textContent = text;
  slider.setAttribute("aria-valuetext", text);
}

/** @param {Model[]} listed */
export function setModels(listed) {
  const chosen = model.value;
  models = listed;
  model.replaceChildren(...models.map(({ id }) => element("option", { value: id }, id)));
  if (models.some(({ id }) => id === chosen)) model.value = chosen;
  byId("field-model", HTMLElement).hidden = models.length < 2;
  byId("only-model", HTMLElement).textContent = models.length === 1 ? `Model ${models[0].id}` : "";
  showMethods();
}

function showMethods() {
  const chosen = method.value;
  const { methods = [], policy } = models.find(({ id }) => id === model.value)?.fsr ?? {};
  const byPolicy = policy ? `The gateway’s policy: ${policy.default_method}` : "The gateway’s policy";
  const named = methods.map((name) => element("option", { value: name }, name));
  method.replaceChildren(element("option", { value: "" }, byPolicy), ...named);
  if (methods.includes(chosen)) method.value = chosen;
  byId("policy-budget", HTMLElement).textContent = policy ? `: ${describeBudget(policy.default_budget)}` : "";
}

/**
 * What the form holds. Throws FieldError.
 * @returns {Settings}
 */
export function readSettings() {
  const asked = question.value.trim();
  if (asked === "") throw new FieldError("question", "Write a question about the picture.");
  const choice = /** @type {Settings["choice"]} */ (
    document.querySelector("input[name=budget]:checked")?.getAttribute("value") ?? "share"
  );
  const stop = Number(slider.value);
  return {
    question: asked,
    choice,
    stop,
    budget: { share: budgetOf(stop), auto: /** @type {const} */ ("auto"), policy: null }[choice],
    model: model.value,
    method: method.value,
    options: readObject(options, "options", '{"rho": 0.8}'),
    maxTokens: readNumber(maxTokens, "max_tokens"),
    temperature: readNumber(temperature, "temperature"),
    more: readMore(),
    fps: readNumber(fps, "fps") ?? 2,
  };
}

/** @param {Settings} settings */
export function restoreSettings(settings) {
  question.value = settings.question;
  slider.value = String(settings.stop);
  byId(`choice-${settings.choice}`, HTMLInputElement).checked = true;
  if (models.some(({ id }) => id === settings.model)) model.value = settings.model;
  showMethods();
  method.value = settings.method;
  options.value = writeObject(settings.options);
  more.value = writeObject(settings.more);
  maxTokens.value = String(settings.maxTokens ?? "");
  temperature.value = String(settings.temperature ?? "");
  fps.value = String(settings.fps);
  showStop();
}

/** @returns {Record<string, unknown>} */
function readMore() {
  const fields = readObject(more, "more", '{"seed": 1}');
  const own = Object.keys(fields).find((name) => OWN_FIELDS.includes(name));
  if (own === undefined) return fields;
  throw new FieldError("more", `The page sets ${own} itself. Take it out here.`);
}

/** @param {Record<string, unknown>} object */
function writeObject(object) {
  return Object.keys(object).length === 0 ? "" : JSON.stringify(object);
}

/**
 * @param {HTMLTextAreaElement} input
 * @param {import("./errors.js").Field} field
 * @param {string} example
 * @returns {Record<string, unknown>}
 */
function readObject(input, field, example) {
  const text = input.value.trim();
  if (text === "") return {};
  try {
    const value = JSON.parse(text);
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return value;
  } catch {
    // The sentence below tells it.
  }
  throw new FieldError(field, `This is no JSON object. Write one such as ${example}.`);
}

/**
 * @param {HTMLInputElement} input
 * @param {import("./errors.js").Field} field
 * @returns {number | null}
 */
function readNumber(input, field) {
  if (input.validity.valid) return input.value === "" ? null : input.valueAsNumber;
  const whole = input.step === "1" ? "whole number" : "number";
  const range = input.max === "" ? `from ${input.min}` : `from ${input.min} to ${input.max}`;
  throw new FieldError(field, `Write a ${whole} ${range}.`);
}
