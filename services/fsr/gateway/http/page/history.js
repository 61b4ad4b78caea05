/** The questions of this session, newest first. They live in the memory of the page alone. */

import { byId, element } from "./dom.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */

const MOST = 20;

/** @type {Conversation[]} */
let conversations = [];

/**
 * @param {Conversation} conversation
 * @param {(conversation: Conversation) => void} restore
 */
export function remember(conversation, restore) {
  conversations = [conversation, ...conversations].slice(0, MOST);
  showHistory(conversation, restore);
}

/**
 * @param {Conversation} shown
 * @param {(conversation: Conversation) => void} restore
 */
export function showHistory(shown, restore) {
  const entries = conversations.map((conversation) => {
    const button = entry(conversation, conversation === shown);
    button.addEventListener("click", () => restore(conversation));
    return element("li", {}, button);
  });
  const list = byId("history-list", HTMLOListElement);
  const focused = [...list.querySelectorAll("button")].findIndex((button) => button === document.activeElement);
  list.replaceChildren(...entries);
  list.querySelectorAll("button")[focused]?.focus();
  byId("history", HTMLElement).hidden = entries.length === 0;
}

/**
 * @param {Conversation} conversation
 * @param {boolean} shown
 */
function entry({ picture, settings, few, all }, shown) {
  const kept = few.usage === null ? "" : `${few.usage.fsr.visual_tokens_kept} of ${few.usage.fsr.visual_tokens_in}: `;
  const texts = [element("strong", {}, settings.question), element("span", {}, `${kept}${few.text.trim() || "no answer"}`)];
  if (all.text !== "") texts.push(element("span", {}, `all: ${all.text.trim()}`));
  return element(
    "button",
    { type: "button", class: "past", ...(shown ? { "aria-current": "true" } : {}) },
    element("img", { src: picture.frames[0].thumbnail, alt: "" }),
    element("span", { class: "past-text" }, ...texts),
  );
}
