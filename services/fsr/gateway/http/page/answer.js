/** A streamed answer that goes on where it broke off, for example because its gateway died. */

import { ApiError, streamChat } from "./api.js";

const LONGEST_WAIT_MS = 15000; // without progress
const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 1000;

/**
 * The chunks of an answer. If its connection breaks, a gateway at the same address is asked for the rest, so nothing is
 * lost and nothing comes twice. Throws ApiError; AbortError once `signal` is aborted.
 * @param {any} body
 * @param {string} key
 * @param {AbortSignal} signal
 * @param {(waiting: boolean) => void} waits called when the connection has broken, and when the answer goes on
 * @returns {AsyncGenerator<any, void, void>}
 */
export async function* streamAnswer(body, key, signal, waits) {
  /** @type {number[]} */
  const tokenIds = [];
  let fingerprint = "";
  let finished = false; // what is missing now is the usage
  let failures = 0; // in a row
  let failingSince = 0;
  for (;;) {
    const rest = tokenIds.length === 0 ? {} : { resume: { token_ids: tokenIds, fingerprint }, explain: false };
    try {
      for await (const chunk of streamChat({ ...body, fsr: { ...body.fsr, resumable: true, ...rest } }, key, signal)) {
        if (failures > 0) waits(false);
        failures = 0;
        tokenIds.push(...(chunk.fsr?.token_ids ?? []));
        fingerprint ||= chunk.fsr?.fingerprint ?? "";
        if (finished && chunk.choices.length > 0) continue;
        finished ||= Boolean(chunk.choices[0]?.finish_reason);
        yield chunk;
      }
      return;
    } catch (error) {
      if (!(error instanceof ApiError) || !passes(error) || tokenIds.length === 0 || signal.aborted) throw error;
      if (failures === 0) {
        failingSince = performance.now();
        waits(true);
      }
      if (performance.now() - failingSince > LONGEST_WAIT_MS) throw error;
      await sleep(Math.min(FIRST_PAUSE_MS * 2 ** failures, LONGEST_PAUSE_MS), signal);
      failures += 1;
    }
  }
}

/**
 * Whether a gateway may go on with the answer: the connection broke, or none is ready or has room at the moment.
 * @param {ApiError} error
 */
function passes({ status }) {
  return [0, 429, 502, 503, 504].includes(status);
}

/**
 * @param {number} ms
 * @param {AbortSignal} signal ends the wait
 * @returns {Promise<void>}
 */
function sleep(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    }, { once: true });
  });
}
