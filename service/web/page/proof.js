// Proves the certificate again: sends the golden rows to the serving model, and compares the answers here.

import { post } from "./api.js";

/** Returns the largest difference, the largest share of the tolerance, and whether every output is within it. */
export async function prove(manifest) {
  const { golden, input, name, version } = manifest;
  const tensor = { name: input.name, shape: [golden.inputs.length, manifest.features.length], datatype: "FP32", data: golden.inputs.flat() };
  const { answer, milliseconds } = await post(`v2/models/${name}/versions/${version}/infer`, { inputs: [tensor] });
  const { absolute, relative } = manifest.certificate.tolerance;
  let [difference, share] = [0, 0];
  golden.outputs.flat().forEach((expected, i) => {
    const gap = Math.abs(answer.outputs[0].data[i] - expected);
    // A gap that is not a number must not pass.
    const used = Number.isFinite(gap) ? gap / (absolute + relative * Math.abs(expected)) : Infinity;
    [difference, share] = [Math.max(difference, gap), Math.max(share, used)];
  });
  return { rows: golden.inputs.length, outputs: golden.outputs.flat().length, difference, share, holds: share <= 1, milliseconds };
}
