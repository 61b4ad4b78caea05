/** Server-sent events from the body of a response. EventSource can only GET, and a chat request is a POST. */

/**
 * The data of each event, as https://html.spec.whatwg.org/multipage/server-sent-events.html parses it; events come
 * in pieces that may end anywhere, inside a character too.
 * @param {NonNullable<Response["body"]>} body
 * @returns {AsyncGenerator<string, void, void>}
 */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  /** @type {string[]} */
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      text += value ?? "";
      const lines = text.split(/\r\n|\n|\r(?!$)/); // a final \r may be the first half of \r\n
      text = lines.pop() ?? "";
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        if (line === "" && data.length > 0) {
          yield data.join("\n");
          data = [];
        }
      }
      if (done) return;
    }
  } finally {
    await reader.cancel().catch(() => {}); // hangs up, if the consumer stops early
  }
}
