/** Draws what became of each token over the picture, in the colours of `fsr explain` (fsr_core/overlay.py). */

/**
 * @typedef {import("./tokens.js").Panel} Panel
 * @typedef {import("./picture.js").Frame} Frame
 */

const FOCUS_INK = "rgb(230, 120, 0)";
const SCAN_INK = "rgb(0, 114, 205)";
const MERGE_INK = "rgb(120, 190, 240)";
const DROPPED_SHADE = "rgba(12, 12, 16, 0.804)";
const MERGED_SHADE = "rgba(12, 12, 16, 0.471)";
/** Widest frame of a kept token, in pixels of the canvas; small cells have a thinner one. */
const FRAME = 4;

/**
 * The picture with its tokens marked. Kept tokens are clear and framed, merged ones dim with a line to the token that
 * absorbed them, dropped ones dark.
 * @param {HTMLCanvasElement} canvas
 * @param {Frame} picture
 * @param {Panel} panel
 * @param {number} width of the canvas in its own pixels
 */
export function drawOverlay(canvas, picture, panel, width) {
  const scale = width / picture.width;
  canvas.width = width;
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  const pen = context(canvas);
  pen.imageSmoothingQuality = "high";
  pen.fillStyle = "white"; // behind transparent parts, as the encoder saw them
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(picture.bitmap, 0, 0, canvas.width, canvas.height);
  const boxes = panel.cells.map((_, place) => box(panel, place, scale));
  pen.drawImage(shade(canvas, panel, boxes), 0, 0);
  drawMerges(pen, panel, boxes);
  panel.cells.forEach(({ state }, place) => {
    if (state !== "focus" && state !== "scan") return;
    pen.strokeStyle = state === "focus" ? FOCUS_INK : SCAN_INK;
    const { x, y, width: across, height: down } = boxes[place];
    pen.lineWidth = Math.max(1, Math.min(FRAME, Math.floor(Math.min(across, down) / 6)));
    const inset = 1 + pen.lineWidth / 2;
    pen.strokeRect(x + inset, y + inset, across - 2 * inset, down - 2 * inset);
  });
}

/**
 * @param {Panel} panel
 * @param {number} place
 * @param {number} scale
 */
function box({ crop, rows, columns }, place, scale) {
  const [row, column] = [Math.floor(place / columns), place % columns];
  /** @param {number} i */
  const x = (i) => Math.round(scale * (crop.left + (i * (crop.right - crop.left)) / columns));
  /** @param {number} i */
  const y = (i) => Math.round(scale * (crop.top + (i * (crop.bottom - crop.top)) / rows));
  return { x: x(column), y: y(row), width: x(column + 1) - x(column), height: y(row + 1) - y(row) };
}

/**
 * A layer that darkens everything but the kept tokens.
 * @param {HTMLCanvasElement} canvas
 * @param {Panel} panel
 * @param {ReturnType<typeof box>[]} boxes
 */
function shade(canvas, panel, boxes) {
  const layer = document.createElement("canvas");
  layer.width = canvas.width;
  layer.height = canvas.height;
  const pen = context(layer);
  pen.fillStyle = DROPPED_SHADE;
  pen.fillRect(0, 0, layer.width, layer.height);
  pen.fillStyle = MERGED_SHADE;
  panel.cells.forEach(({ state }, place) => {
    if (state === "dropped") return;
    const { x, y, width, height } = boxes[place];
    pen.clearRect(x, y, width, height);
    if (state === "merged") pen.fillRect(x, y, width, height);
  });
  return layer;
}

/**
 * Lines from merged tokens to those that absorbed them, where both are in the panel.
 * @param {CanvasRenderingContext2D} pen
 * @param {Panel} panel
 * @param {ReturnType<typeof box>[]} boxes
 */
function drawMerges(pen, panel, boxes) {
  const places = new Map(panel.cells.map(({ token }, place) => [token, place]));
  pen.strokeStyle = pen.fillStyle = MERGE_INK;
  pen.lineWidth = 2;
  panel.cells.forEach(({ state, into }, place) => {
    const anchor = places.get(into);
    if (state !== "merged" || anchor === undefined) return;
    const [from, to] = [middle(boxes[place]), middle(boxes[anchor])];
    pen.beginPath();
    pen.moveTo(from.x, from.y);
    pen.lineTo(to.x, to.y);
    pen.stroke();
    pen.beginPath();
    pen.arc(from.x, from.y, 4, 0, 2 * Math.PI);
    pen.fill();
  });
}

/** @param {ReturnType<typeof box>} box */
function middle({ x, y, width, height }) {
  return { x: x + width / 2, y: y + height / 2 };
}

/** @param {HTMLCanvasElement} canvas */
function context(canvas) {
  const pen = canvas.getContext("2d");
  if (pen === null) throw new Error("this browser cannot draw on a canvas");
  return pen;
}
