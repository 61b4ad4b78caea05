/** The stops of the slider, from one token to all. */

/** Shares between the two ends: finer where few tokens are left. */
const SHARES = [0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.11, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9];

export const LAST_STOP = SHARES.length + 1;
export const FIRST_CHOICE = SHARES.indexOf(0.11) + 1;

/** Not the number 1.0: JavaScript would write it as 1, which is one token. */
export const ALL_TOKENS = "all";

/** @typedef {number | "auto" | "all" | null} Budget as the API takes it; null leaves it to the gateway's policy */

/**
 * @param {number} stop from 0 to LAST_STOP
 * @returns {Budget}
 */
export function budgetOf(stop) {
  if (stop === 0) return 1;
  return stop === LAST_STOP ? ALL_TOKENS : SHARES[stop - 1];
}

/**
 * @param {number} stop from 0 to LAST_STOP
 * @param {number | null} tokens of the picture, if an answer has told them
 */
export function describeStop(stop, tokens) {
  if (stop === 0) return "1 token";
  if (stop === LAST_STOP) return tokens === null ? "all tokens" : `all ${tokens} tokens`;
  const share = SHARES[stop - 1];
  const percent = `${Number((100 * share).toFixed(1))} %`;
  return tokens === null ? `${percent} of the tokens` : `${percent}, about ${Math.max(1, Math.round(share * tokens))} of ${tokens}`;
}

/**
 * @param {number | "auto" | object} budget as the API sends it
 */
export function describeBudget(budget) {
  if (typeof budget !== "number") return "automatic";
  if (!Number.isInteger(budget)) return `${Number((100 * budget).toFixed(1))} %`;
  return budget === 1 ? "1 token" : `${budget} tokens`;
}
