/** What an answer took, as a table that compares few tokens with all. */

import { describeBudget } from "./budget.js";
import { element } from "./dom.js";

/** @typedef {import("./conversation.js").Answer} Answer */

/**
 * A figure's name, and its text from a usage of the API. Figures in groups of stages are set off.
 * @type {{name: string, part?: boolean, text: (usage: any) => string}[]}
 */
const FIGURES = [
  { name: "Visual tokens kept", text: ({ fsr }) => `${fsr.visual_tokens_kept} of ${fsr.visual_tokens_in}` },
  { name: "Prompt", text: (usage) => tokens(usage.prompt_tokens) },
  { name: "Time to first token", text: ({ fsr }) => seconds(fsr.seconds.ttft) },
  {
    name: "encoding",
    part: true,
    text: ({ fsr }) => (fsr.cached_images > 0 ? "cached" : seconds(fsr.seconds.encode)),
  },
  { name: "compression", part: true, text: ({ fsr }) => seconds(fsr.seconds.compress) },
  { name: "prefill", part: true, text: ({ fsr }) => seconds(fsr.seconds.prefill) },
  { name: "Whole answer", text: ({ fsr }) => seconds(fsr.seconds.total) },
  { name: "Answer", text: (usage) => tokens(usage.completion_tokens) },
  { name: "KV cache saved", text: ({ fsr }) => bytes(fsr.kv_bytes_saved) },
  { name: "Prefill saved", text: ({ fsr }) => flops(fsr.prefill_flops_saved) },
  { name: "Budget", text: ({ fsr }) => `${appliedBudget(fsr)} ${chosenBy(fsr.budget_chosen_by)}` },
  { name: "Method", text: ({ fsr }) => `${fsr.method} ${chosenBy(fsr.method_chosen_by)}` },
];

/**
 * The rows of the table.
 * @param {Answer} few
 * @param {Answer} all
 * @returns {HTMLTableRowElement[]}
 */
export function figureRows(few, all) {
  return FIGURES.map(({ name, part, text }) =>
    element(
      "tr",
      part ? { class: "part" } : {},
      element("th", { scope: "row" }, name),
      ...[few, all].map(({ usage }) => element("td", {}, usage === null ? "–" : text(usage))),
    ),
  );
}

/** @param {number} count */
function tokens(count) {
  return `${count} ${count === 1 ? "token" : "tokens"}`;
}

/** @param {number | undefined} value */
function seconds(value) {
  if (value === undefined) return "–";
  return value < 1 ? `${(1000 * value).toFixed(value < 0.01 ? 1 : 0)} ms` : `${value.toFixed(2)} s`;
}

/** @param {number} count */
function bytes(count) {
  return scaled(count, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
}

/** @param {number} count */
function flops(count) {
  return scaled(count, 1000, ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"]);
}

/**
 * @param {number} count
 * @param {number} step
 * @param {string[]} units
 */
function scaled(count, step, units) {
  if (count === 0) return "nothing";
  const power = Math.min(Math.floor(Math.log(count) / Math.log(step)), units.length - 1);
  const number = count / step ** power;
  return `${power === 0 || number >= 100 ? Math.round(number) : number.toFixed(1)} ${units[power]}`;
}

/**
 * The budget that was applied. In JavaScript the share 1.0 is the number 1, as one token is: what was kept tells them apart.
 * @param {any} usage the gateway's
 */
function appliedBudget({ budget, visual_tokens_kept }) {
  return budget === 1 && visual_tokens_kept > 1 ? "all" : describeBudget(budget);
}

/** @param {"request" | "policy"} who */
function chosenBy(who) {
  return who === "policy" ? "(policy)" : "(request)";
}
