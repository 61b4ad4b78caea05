/** One question, asked twice: with few visual tokens, and with all of them. */

import { streamAnswer } from "./answer.js";
import { ApiError } from "./api.js";
import { ALL_TOKENS } from "./budget.js";
import { FieldError, fieldError } from "./errors.js";

/**
 * @typedef {import("./picture.js").Picture} Picture
 * @typedef {import("./tokens.js").ExplainedImage} ExplainedImage
 *
 * What the form holds.
 * @typedef {object} Settings
 * @property {string} question
 * @property {"share" | "auto" | "policy"} choice
 * @property {number} stop of the slider
 * @property {import("./budget.js").Budget} budget
 * @property {string} model
 * @property {string} method
 * @property {Record<string, unknown>} options
 * @property {number | null} maxTokens
 * @property {number | null} temperature
 * @property {Record<string, unknown>} more other fields of the request
 * @property {number} fps
 *
 * @typedef {"waiting" | "asking" | "streaming" | "done" | "stopped" | "failed" | "skipped"} Phase
 *
 * @typedef {object} Answer
 * @property {Phase} phase
 * @property {string} text
 * @property {string} note why there is no answer
 * @property {ExplainedImage | null} image
 * @property {any} usage the last chunk's; null before
 *
 * @typedef {{picture: Picture, settings: Settings, few: Answer, all: Answer}} Conversation
 */

/** Fields of a request that have a place of their own in the form, or that the page itself needs. */
export const OWN_FIELDS = ["model", "messages", "max_tokens", "max_completion_tokens", "temperature", "stream", "stream_options", "fsr"];

/**
 * @param {Picture} picture
 * @param {Settings} settings
 * @returns {Conversation}
 */
export function newConversation(picture, settings) {
  return { picture, settings, few: newAnswer(), all: newAnswer() };
}

/** @returns {Answer} */
function newAnswer() {
  return { phase: "waiting", text: "", note: "", image: null, usage: null };
}

/**
 * Asks with few tokens and then with all: one after the other, so that neither slows the other down. Throws FieldError
 * if the first request fails; if the second does, its answer says so.
 * @param {Conversation} conversation
 * @param {string} key
 * @param {AbortSignal} signal
 * @param {() => void} changed called whenever something arrives
 */
export async function ask(conversation, key, signal, changed) {
  const { few, all, settings } = conversation;
  const error = await receive(few, requestBody(conversation, settings.budget, true), key, signal, changed);
  if (few.phase !== "done") {
    all.phase = "skipped";
    all.note = "Not asked.";
    changed();
    if (error) throw error;
    return;
  }
  if (settings.budget === ALL_TOKENS) {
    all.phase = "skipped";
    all.note = "Your budget keeps all tokens already, so there is nothing to compare with.";
    changed();
    return;
  }
  const refused = await receive(all, requestBody(conversation, ALL_TOKENS, false), key, signal, changed);
  if (refused) {
    all.note = refused.field === "budget" ? `The gateway does not give you all tokens. ${refused.message}` : refused.message;
    changed();
  }
}

/**
 * Fills an answer from its stream.
 * @param {Answer} answer
 * @param {object} body
 * @param {string} key
 * @param {AbortSignal} signal
 * @param {() => void} changed
 * @returns {Promise<FieldError | null>}
 */
async function receive(answer, body, key, signal, changed) {
  answer.phase = "asking";
  changed();
  /** @param {boolean} waiting */
  const waits = (waiting) => {
    answer.note = waiting ? "The connection broke. Waiting for the gateway to go on …" : "";
    changed();
  };
  try {
    for await (const chunk of streamAnswer(body, key, signal, waits)) {
      answer.phase = "streaming";
      answer.text += chunk.choices[0]?.delta?.content ?? "";
      answer.image ??= chunk.fsr?.images?.[0] ?? null;
      answer.usage ??= chunk.usage ?? null;
      changed();
    }
    answer.phase = "done";
    return null;
  } catch (error) {
    answer.note = "";
    answer.phase = signal.aborted ? "stopped" : "failed";
    if (signal.aborted) return null;
    if (error instanceof ApiError) return fieldError(error);
    throw error;
  } finally {
    changed();
  }
}

/**
 * @param {Conversation} conversation
 * @param {import("./budget.js").Budget} budget
 * @param {boolean} explain
 */
function requestBody({ picture, settings }, budget, explain) {
  const { question, model, method, options, maxTokens, temperature, more } = settings;
  return {
    ...more,
    model,
    messages: [{ role: "user", content: [mediaPart(picture, settings.fps), { type: "text", text: question }] }],
    max_tokens: maxTokens,
    temperature,
    stream: true,
    stream_options: { include_usage: true },
    fsr: { budget, method: method || null, options, explain },
  };
}

/**
 * @param {Picture} picture
 * @param {number} fps
 */
function mediaPart({ frames, video }, fps) {
  const urls = frames.map(({ url }) => url);
  return video
    ? { type: "video_url", video_url: { frames: urls, fps } }
    : { type: "image_url", image_url: { url: urls[0] } };
}
