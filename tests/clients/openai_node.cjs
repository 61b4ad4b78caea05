// What the official `openai` package for Node gets from a gateway, as JSON: node openai_node.cjs URL KEY PICTURE
const { readFileSync } = require("node:fs");
const OpenAI = require("openai");

const [baseURL, apiKey, file] = process.argv.slice(2);
const url = `data:image/png;base64,${readFileSync(file).toString("base64")}`;
const request = {
  model: "fsr-tiny",
  max_tokens: 20,
  ignore_eos: true,
  fsr: { budget: 16 },
  messages: [
    {
      role: "user",
      content: [
        { type: "image_url", image_url: { url } },
        { type: "text", text: "What colour is the star?" },
      ],
    },
  ],
};

async function failure(client, options) {
  try {
    await client.chat.completions.create({ ...request, ...options });
  } catch (error) {
    return { class: error.constructor.name, status: error.status, param: error.param, message: error.message };
  }
  return null;
}

async function main() {
  const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
  const answer = await client.chat.completions.create(request);
  const stream = await client.chat.completions.create({
    ...request,
    stream: true,
    stream_options: { include_usage: true },
  });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  const stranger = new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 });
  console.log(
    JSON.stringify({
      answer,
      request_id: answer._request_id,
      streamed: chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join(""),
      usage: chunks.at(-1).usage,
      models,
      errors: [await failure(client, { n: 2 }), await failure(client, { model: "missing" }), await failure(stranger)],
    }),
  );
}

main();
