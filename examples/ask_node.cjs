// Streams an answer by gRPC in Node: node examples/ask_node.cjs scene.png "Where is the red star?" [HOST:PORT]
// Needs: npm install @grpc/grpc-js @grpc/proto-loader
const { readFileSync } = require("node:fs");
const { join } = require("node:path");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const [picture, question, address = "127.0.0.1:20050"] = process.argv.slice(2);
const contracts = protoLoader.loadSync("fsr/v1/gateway.proto", {
  includeDirs: [join(__dirname, "../protos")],
  keepCase: true, // names as in the proto files
  longs: Number,
  enums: String,
});
const { GatewayService } = grpc.loadPackageDefinition(contracts).fsr.v1;
const client = new GatewayService(address, grpc.credentials.createInsecure());

const request = {
  messages: [{ role: "ROLE_USER", parts: [{ image: 0 }, { text: question }] }],
  images: [{ data: readFileSync(picture) }],
  budget: { tokens: 16 },
};
const metadata = new grpc.Metadata();
if (process.env.FSR_API_KEY) metadata.set("authorization", `Bearer ${process.env.FSR_API_KEY}`);

const call = client.Generate(request, metadata, { deadline: Date.now() + 60_000 });
call.on("data", (piece) => {
  process.stdout.write(piece.text ?? "");
  if (piece.usage) {
    const { visual_tokens_kept, visual_tokens_in } = piece.usage;
    console.log(`\n${visual_tokens_kept} of ${visual_tokens_in} visual tokens`);
  }
});
call.on("error", (error) => {
  console.error(`error: ${grpc.status[error.code]}: ${error.details}`);
  process.exitCode = 1;
});
call.on("end", () => client.close());
