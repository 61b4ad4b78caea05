/** The drawn scenes of the package, and questions that suit them. */

import { byId, element } from "./dom.js";

/** @typedef {{file: string, name: string, description: string, questions: string[]}} Scene */

const FOLDER = "page/scenes";

/** The questions that are suggested now. @type {string[]} */
let suggested = [];

/**
 * Shows the scenes; a click chooses one.
 * @param {(files: File[], description: string) => Promise<void>} choose
 */
export async function showScenes(choose) {
  /** @type {Scene[]} */
  const scenes = await (await fetch(`${FOLDER}/scenes.json`)).json();
  const buttons = scenes.map((scene) => {
    const image = element("img", { src: `${FOLDER}/${scene.file}`, alt: scene.description, width: 64, height: 64 });
    const button = element("button", { type: "button", class: "scene" }, image, element("span", {}, scene.name));
    button.addEventListener("click", async () => {
      const file = await (await fetch(`${FOLDER}/${scene.file}`)).blob();
      await choose([new File([file], scene.name, { type: file.type })], scene.description);
      suggest(scene.questions);
    });
    return element("li", {}, button);
  });
  byId("scenes", HTMLElement).replaceChildren(...buttons);
}

/** @param {string[]} questions */
function suggest(questions) {
  const field = byId("question", HTMLTextAreaElement);
  const buttons = questions.map((text) => {
    const button = element("button", { type: "button", class: "chip" }, text);
    button.addEventListener("click", () => {
      field.value = text;
      field.focus();
    });
    return element("li", {}, button);
  });
  byId("suggestions", HTMLElement).replaceChildren(...buttons);
  byId("suggestions", HTMLElement).hidden = false;
  if (field.value.trim() === "" || suggested.includes(field.value)) field.value = questions[0];
  suggested = questions;
}
