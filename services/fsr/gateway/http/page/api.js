/** The gateway's HTTP interface, as this page uses it. Addresses are relative, so that a proxy may add a path. */

import { events } from "./sse.js";

/**
 * What the page must know of this gateway.
 * @typedef {object} Config
 * @property {string} version
 * @property {boolean} key_needed
 * @property {string | null} grafana_url
 * @property {number} max_image_bytes
 * @property {number} max_images_bytes
 * @property {number} max_frames
 */

/**
 * @typedef {object} Model
 * @property {string} id
 * @property {{methods: string[], policy: {default_method: string, default_budget: number | "auto" | object} | null}} fsr
 */

/** A request that failed. `param` is the field of the request that caused it, if one did. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {number} status HTTP status; 0 if there was no response
   * @param {string | null} [param]
   */
  constructor(message, status, param = null) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.param = param;
  }
}

/** @returns {Promise<Config>} */
export async function readConfig() {
  return (await request("page/config.json", {})).json();
}

/**
 * @param {string} key
 * @returns {Promise<Model[]>}
 */
export async function listModels(key) {
  return (await (await request("v1/models", { headers: authorization(key) })).json()).data;
}

/**
 * The chunks of a streamed answer. Throws ApiError; AbortError once `signal` is aborted.
 * @param {object} body
 * @param {string} key
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<any, void, void>}
 */
export async function* streamChat(body, key, signal) {
  const headers = { "content-type": "application/json", ...authorization(key) };
  const response = await request("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
  if (response.body === null) throw new ApiError("The gateway sent no answer; ask again", response.status);
  let complete = false;
  try {
    for await (const data of events(response.body)) {
      complete = data === "[DONE]";
      if (complete) continue; // to the end of the response, which comes now
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message, response.status, chunk.error.param);
      yield chunk;
    }
  } catch (error) {
    throw lostConnection(error);
  }
  if (!complete) throw new ApiError("The connection broke before the answer was complete; ask again", 0);
}

/**
 * @param {string} key
 * @returns {Record<string, string>}
 */
function authorization(key) {
  return key === "" ? {} : { authorization: `Bearer ${key}` };
}

/**
 * @param {string} address
 * @param {RequestInit} options
 * @returns {Promise<Response>}
 */
async function request(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    throw lostConnection(error);
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw new ApiError(error?.message ?? `The gateway answered with status ${response.status}`, response.status, error?.param);
}

/**
 * What browsers throw when a connection fails is a TypeError with a text of their own.
 * @param {unknown} error
 */
function lostConnection(error) {
  if (!(error instanceof TypeError)) return error;
  return new ApiError("The gateway does not answer; check that it runs and can be reached, then ask again", 0);
}
