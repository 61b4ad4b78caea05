/** Where pictures come from: the file dialog, a drop anywhere on the page, and the clipboard. */

import { byId } from "./dom.js";

/** @param {(files: File[]) => void} choose */
export function acceptFiles(choose) {
  const input = byId("files", HTMLInputElement);
  const zone = byId("drop", HTMLElement);
  input.addEventListener("change", () => {
    choose([...(input.files ?? [])]);
    input.value = ""; // the same file may be chosen again
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) zone.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault(); // otherwise the browser leaves the page and shows the file
    zone.classList.remove("over");
    choose([...(event.dataTransfer?.files ?? [])]);
  });
  document.addEventListener("paste", (event) => {
    choose([...(event.clipboardData?.files ?? [])]);
  });
}
