/** Shows both answers of a conversation, what they took, and what became of each token. */

import { byId, element } from "./dom.js";
import { figureRows } from "./figures.js";
import { drawOverlay } from "./overlay.js";
import { OVERLAY_WIDTH } from "./picture.js";
import { tokenTable } from "./token_table.js";
import { countsOf, panelsOf, STATES, tokensOf } from "./tokens.js";

/**
 * @typedef {import("./conversation.js").Answer} Answer
 * @typedef {import("./conversation.js").Conversation} Conversation
 * @typedef {import("./tokens.js").ExplainedImage} ExplainedImage
 */

/** The explanation that is drawn now. @type {ExplainedImage | null} */
let drawn = null;

/** @param {Conversation} conversation */
export function showConversation({ picture, settings, few, all }) {
  byId("empty", HTMLElement).hidden = true;
  byId("asked", HTMLElement).hidden = false;
  byId("asked", HTMLElement).textContent = settings.question;
  byId("answers", HTMLElement).hidden = false;
  showAnswer("few", few);
  showAnswer("all", all);
  byId("figures", HTMLElement).hidden = few.usage === null;
  if (few.usage !== null) byId("figure-rows", HTMLTableSectionElement).replaceChildren(...figureRows(few, all));
  announce(statusOf(few, all));
  if (few.image !== drawn) showTokens(picture, few.image);
}

/**
 * @param {"few" | "all"} name
 * @param {Answer} answer
 */
function showAnswer(name, { phase, text, note, image, usage }) {
  const card = byId(`answer-${name}`, HTMLElement);
  card.dataset.phase = phase;
  card.setAttribute("aria-busy", String(phase === "asking" || phase === "streaming"));
  byId(`text-${name}`, HTMLElement).textContent = text.trimStart(); // models begin with a space
  byId(`note-${name}`, HTMLElement).textContent = noteOf(phase, text, note);
  const kept = usage?.fsr.visual_tokens_kept ?? image?.index.length;
  const from = usage?.fsr.visual_tokens_in ?? image?.source_tokens;
  byId(`kept-${name}`, HTMLElement).textContent = kept === undefined ? "" : `${kept} of ${from}`;
}

/**
 * @param {import("./conversation.js").Phase} phase
 * @param {string} text
 * @param {string} note
 */
function noteOf(phase, text, note) {
  if (note !== "") return note;
  if (phase === "waiting") return "Waits for the other answer.";
  if (phase === "asking" || (phase === "streaming" && text === "")) return "Asking …";
  if (phase === "stopped") return "Stopped.";
  if (phase === "failed") return text === "" ? "No answer." : "The answer broke off.";
  return phase === "done" && text === "" ? "The model answered with no text." : "";
}

/**
 * @param {Answer} few
 * @param {Answer} all
 */
function statusOf(few, all) {
  if (few.phase === "failed") return "The request failed.";
  if (few.phase === "stopped" || all.phase === "stopped") return "Stopped.";
  if (few.phase !== "done") return "Asking with few tokens.";
  const said = `With few tokens: ${few.text.trim()}.`;
  if (all.phase === "done") return `${said} With all tokens: ${all.text.trim()}.`;
  return all.phase === "skipped" || all.phase === "failed" ? said : `${said} Asking with all tokens.`;
}

/**
 * Tells screen readers, once.
 * @param {string} text
 */
export function announce(text) {
  const status = byId("status", HTMLElement);
  if (status.textContent !== text) status.textContent = text;
}

/**
 * @param {import("./picture.js").Picture} picture
 * @param {ExplainedImage | null} image
 */
function showTokens(picture, image) {
  drawn = image;
  byId("tokens", HTMLElement).hidden = image === null;
  const details = byId("token-details", HTMLDetailsElement);
  details.open = false;
  details.ontoggle = null;
  byId("token-tables", HTMLElement).replaceChildren();
  if (image === null) return;
  const counts = countsOf(tokensOf(image));
  for (const state of STATES) byId(`count-${state}`, HTMLElement).textContent = String(counts[state]);
  byId("token-summary", HTMLElement).textContent =
    `Of ${image.source_tokens} visual tokens ${counts.focus + counts.scan} were kept: ${counts.focus} by focus, ` +
    `${counts.scan} by scan. ${counts.merged} were merged into kept ones, and ${counts.dropped} dropped.`;
  const panels = panelsOf(image);
  const each = Math.ceil(picture.frames.length / panels.length); // frames in a panel; the last one may have fewer
  const width = panels.length > 1 ? OVERLAY_WIDTH / 2 : OVERLAY_WIDTH;
  const names = panels.map((_, i) => (panels.length === 1 ? "" : `${picture.video ? "Frame" : "View"} ${i * each + 1}`));
  const shown = panels.map((panel, i) => {
    const label = `${names[i] || "The picture"} with its visual tokens. ${countsText(countsOf(panel.cells))}`;
    const canvas = element("canvas", { role: "img", "aria-label": label });
    const frame = picture.frames[Math.min(i * each, picture.frames.length - 1)];
    drawOverlay(canvas, frame, panel, Math.min(width, frame.bitmap.width));
    return element("div", { class: "panel" }, canvas, ...(names[i] ? [element("p", { class: "hint" }, names[i])] : []));
  });
  byId("panels", HTMLElement).replaceChildren(...shown);
  details.ontoggle = () => {
    details.ontoggle = null;
    byId("token-tables", HTMLElement).replaceChildren(...panels.map((panel, i) => tokenTable(panel, names[i])));
  };
}

/** @param {ReturnType<typeof countsOf>} counts */
function countsText(counts) {
  return STATES.map((state) => `${counts[state]} ${state}`).join(", ");
}
