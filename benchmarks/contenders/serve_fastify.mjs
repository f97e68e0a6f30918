// Serves the model with Fastify and onnxruntime-node: `node serve_fastify.mjs PORT MODEL MODULES`.
// MODULES is the folder whose node_modules has the two packages.

import { createRequire } from "node:module";
import { resolve } from "node:path";

const [port, model, modules] = process.argv.slice(2);
const require = createRequire(resolve(modules, "package.json"));
const ort = require("onnxruntime-node");
const fastify = require("fastify");

const session = await ort.InferenceSession.create(model, { intraOpNumThreads: 1, executionProviders: ["cpu"] });
const app = fastify({ bodyLimit: 64 * 2 ** 20 });
const number = { type: "number" };
const rows = { type: "array", minItems: 1, items: { type: "array", items: number } };

app.get("/health", async () => ({ ready: true }));

// Fastify recommends a schema for the body, which Fastify validates, and a schema for the response, which makes the
// serialiser faster.
app.post(
  "/predict",
  {
    schema: {
      body: { type: "object", required: ["instances"], properties: { instances: rows } },
      response: { 200: { type: "object", properties: { probabilities: rows } } },
    },
  },
  async (request) => {
    const { instances } = request.body;
    const width = instances[0].length;
    const input = new Float32Array(instances.length * width);
    instances.forEach((row, i) => input.set(row, i * width));
    const { probabilities } = await session.run({ input: new ort.Tensor("float32", input, [instances.length, width]) });
    const classes = probabilities.dims[1];
    const answer = instances.map((_, i) => Array.from(probabilities.data.subarray(i * classes, (i + 1) * classes)));
    return { probabilities: answer };
  },
);

await app.listen({ port: Number(port), host: "127.0.0.1" });
