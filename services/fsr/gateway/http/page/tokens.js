/** What became of each visual token of a picture, from the explanation that the gateway sends. */

/**
 * What the gateway says of an image.
 * @typedef {{left: number, top: number, right: number, bottom: number}} Box
 * @typedef {{start: number, rows: number, columns: number, crop: Box}} View
 * @typedef {object} ExplainedImage
 * @property {number[]} index kept tokens
 * @property {number} source_tokens tokens before compression
 * @property {{stage: number[], merged_into: number[], priority: number[], views: View[]}} explanation
 *
 * @typedef {"focus" | "scan" | "merged" | "dropped"} State
 * @typedef {{token: number, state: State, into: number, priority: number}} Token `into`: the token that absorbed it, or -1
 *
 * One grid over the picture, or over one frame. `cells`: its tokens in raster order.
 * @typedef {{rows: number, columns: number, crop: Box, cells: Token[]}} Panel
 */

/** @type {readonly State[]} */
export const STATES = ["focus", "scan", "merged", "dropped"];

/**
 * Every token, in the order of the source.
 * @param {ExplainedImage} image
 * @returns {Token[]}
 */
export function tokensOf(image) {
  const { stage, merged_into, priority } = image.explanation;
  const tokens = merged_into.map((into, token) => {
    const state = /** @type {State} */ (into >= 0 ? "merged" : "dropped");
    return { token, state, into, priority: priority[token] };
  });
  image.index.forEach((token, i) => {
    tokens[token].state = stage[i] === 0 ? "focus" : "scan";
  });
  return tokens;
}

/**
 * How many tokens are in each state.
 * @param {Token[]} tokens
 * @returns {Record<State, number>}
 */
export function countsOf(tokens) {
  const counts = { focus: 0, scan: 0, merged: 0, dropped: 0 };
  for (const { state } of tokens) counts[state] += 1;
  return counts;
}

/**
 * One panel a view; tiles that lie side by side share one, as `fsr_core.overlay` draws them.
 * @param {ExplainedImage} image
 * @returns {Panel[]}
 */
export function panelsOf(image) {
  const tokens = tokensOf(image);
  /** @type {View[][]} */
  const groups = [];
  for (const view of image.explanation.views) {
    const group = groups.at(-1);
    if (group?.every((other) => sideBySide(view, other))) group.push(view);
    else groups.push([view]);
  }
  return groups.map((group) => joined(group, tokens));
}

/**
 * Whether two grids have cells of one size, and one lies wholly beside or below the other.
 * @param {View} one
 * @param {View} other
 */
function sideBySide(one, other) {
  const [width, height] = [one.crop.right - one.crop.left, one.crop.bottom - one.crop.top];
  const slack = 1e-3 * Math.min(width, height);
  const sameSize =
    one.rows === other.rows &&
    one.columns === other.columns &&
    Math.abs(other.crop.right - other.crop.left - width) < slack &&
    Math.abs(other.crop.bottom - other.crop.top - height) < slack;
  const across = Math.abs(one.crop.left - other.crop.left);
  const down = Math.abs(one.crop.top - other.crop.top);
  return sameSize && (across > width - slack || down > height - slack);
}

/**
 * The panel of views that lie side by side: their cells form one grid.
 * @param {View[]} views
 * @param {Token[]} tokens
 * @returns {Panel}
 */
function joined(views, tokens) {
  const [{ rows, columns, crop: first }] = views;
  const across = (first.right - first.left) / columns;
  const down = (first.bottom - first.top) / rows;
  const crop = {
    left: Math.min(...views.map((view) => view.crop.left)),
    top: Math.min(...views.map((view) => view.crop.top)),
    right: Math.max(...views.map((view) => view.crop.right)),
    bottom: Math.max(...views.map((view) => view.crop.bottom)),
  };
  const width = Math.round((crop.right - crop.left) / across);
  /** @type {Token[]} */
  const cells = [];
  for (const view of views) {
    const top = Math.round((view.crop.top - crop.top) / down);
    const left = Math.round((view.crop.left - crop.left) / across);
    for (let i = 0; i < rows * columns; i += 1) {
      const place = (top + Math.floor(i / columns)) * width + left + (i % columns);
      cells[place] = tokens[view.start + i];
    }
  }
  return { rows: Math.round((crop.bottom - crop.top) / down), columns: width, crop, cells };
}
