/** Errors, each as a sentence next to the field that caused it. */

import { byId } from "./dom.js";

/** @typedef {"picture" | "question" | "budget" | "model" | "method" | "options" | "max_tokens" | "temperature" | "more" | "fps" | "key" | "request"} Field */

/** What the page calls its fields. */
const NAMES = {
  picture: "Picture",
  question: "Question",
  budget: "Budget",
  model: "Model",
  method: "Method",
  options: "Options",
  max_tokens: "Longest answer",
  temperature: "Temperature",
  more: "Other fields",
  fps: "Frames per second",
  key: "Key",
  request: "Request",
};

/** Which field a name in the API belongs to; the first that fits. */
const FIELDS = /** @type {[RegExp, Field][]} */ ([
  [/fps/, "fps"],
  [/image|video|frames/, "picture"],
  [/^messages/, "question"],
  [/options|^(fsr\.)?method\.\w/, "options"],
  [/^(fsr\.)?method/, "method"],
  [/^(fsr\.)?(budget|spread)|^(tokens|keep_ratio)$/, "budget"],
  [/^max_(completion_)?tokens/, "max_tokens"],
  [/^temperature/, "temperature"],
  [/^model/, "model"],
  [/^authorization/, "key"],
  [/^(top_|seed|stop|logprobs|repetition_penalty|ignore_eos)/, "more"],
]);

/** An input that cannot be sent; its message is a sentence. */
export class FieldError extends Error {
  /**
   * @param {Field} field
   * @param {string} sentence
   */
  constructor(field, sentence) {
    super(sentence);
    this.name = "FieldError";
    this.field = field;
  }
}

/**
 * An error of the gateway, with the field of the page that caused it.
 * @param {import("./api.js").ApiError} error
 * @returns {FieldError}
 */
export function fieldError(error) {
  const cause = error.param ?? "";
  /** @type {Field} */
  let field = FIELDS.find(([pattern]) => pattern.test(cause))?.[1] ?? "request";
  if (error.status === 401) field = "key";
  const message = error.message.startsWith(`${cause}: `) ? error.message.slice(cause.length + 2) : error.message;
  return new FieldError(field, sentence(field === "request" ? message : `${NAMES[field]}: ${message}`));
}

/** @param {string} message */
function sentence(message) {
  const text = message.trim();
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

/** @param {FieldError} error */
export function showError({ field, message }) {
  const place = byId(`error-${field}`, HTMLElement);
  place.textContent = message;
  place.closest("details")?.setAttribute("open", "");
  controlsOf(field).forEach((control) => control.setAttribute("aria-invalid", "true"));
}

/** @param {Field} field */
export function clearError(field) {
  byId(`error-${field}`, HTMLElement).textContent = "";
  controlsOf(field).forEach((control) => control.removeAttribute("aria-invalid"));
}

export function clearErrors() {
  for (const field of /** @type {Field[]} */ (Object.keys(NAMES))) clearError(field);
}

/**
 * The controls that are described by the error of a field.
 * @param {Field} field
 * @returns {HTMLElement[]}
 */
export function controlsOf(field) {
  return [...document.querySelectorAll(`[aria-describedby~="error-${field}"]`)].filter(
    (control) => control instanceof HTMLElement,
  );
}
