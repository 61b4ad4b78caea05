/** Every token as text, for those who cannot see the canvas. */

import { element } from "./dom.js";

/**
 * @typedef {import("./tokens.js").Panel} Panel
 * @typedef {import("./tokens.js").Token} Token
 */

/**
 * The grid of a panel as a table that scrolls by itself.
 * @param {Panel} panel
 * @param {string} name of the panel; empty if it is the only one
 */
export function tokenTable({ rows, columns, cells }, name) {
  const title = name === "" ? "Tokens by row and column" : `${name}: tokens by row and column`;
  const places = new Map(cells.map(({ token }, place) => [token, place]));
  const head = element("tr", {}, element("td"));
  for (let column = 1; column <= columns; column += 1) head.append(element("th", { scope: "col" }, String(column)));
  const body = element("tbody");
  for (let row = 0; row < rows; row += 1) {
    const line = element("tr", {}, element("th", { scope: "row" }, String(row + 1)));
    for (const cell of cells.slice(row * columns, (row + 1) * columns)) {
      line.append(tableCell(cell, places.get(cell.into), columns));
    }
    body.append(line);
  }
  const table = element("table", {}, element("caption", {}, title), element("thead", {}, head), body);
  return element("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": title }, table);
}

/**
 * @param {Token} cell
 * @param {number | undefined} anchor place in the panel of the token that absorbed it
 * @param {number} columns
 */
function tableCell({ token, state, into }, anchor, columns) {
  let text = /** @type {string} */ (state);
  if (state === "merged") {
    text += anchor === undefined ? " into another view" : ` into ${Math.floor(anchor / columns) + 1}, ${(anchor % columns) + 1}`;
  }
  return element("td", { "data-token": token, "data-state": state, "data-into": into }, text);
}
