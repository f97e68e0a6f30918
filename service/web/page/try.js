// "Try it": a row that a person draws or fills in, its prediction, its explanation, and the code of the request.

import { post } from "./api.js";
import { createAnswer } from "./answer.js";
import { createCode } from "./code.js";
import { createForm } from "./form.js";
import { createGrid } from "./grid.js";
import { createWhy } from "./why.js";
import { el, onFrame } from "./dom.js";
import { fromCode, pixelWidth } from "./features.js";

/** Show the part. Returns a function that ends it. */
export async function showTry(section, state, { report }) {
  const { manifest, path } = state;
  const golden = manifest.golden.inputs;
  const row = golden[0].map((code, i) => fromCode(manifest.features[i], code));
  const width = pixelWidth(manifest);
  const answer = createAnswer(manifest);
  const code = createCode(manifest, path);
  const why = createWhy(state, row, width, report);
  let example = 0;
  let running = false;
  let again = false;
  let ended = false;

  // One request at a time: while it runs, only the newest row waits.
  async function predict() {
    if (running) { again = true; return; }
    running = true;
    do {
      again = false;
      const sent = [...row];
      try {
        const reply = await post(`${path}:predict`, { instances: [sent] });
        if (ended) return;
        answer.show(reply, state.provider);
        code.show(sent);
        await why.update(sent, reply.answer.predictions[0]);
        report(null);
      } catch (error) {
        if (!ended) report(error);
      }
    } while (again && !ended);
    running = false;
  }

  const input = width
    ? createGrid(manifest.features, width, row, onFrame(predict))
    : createForm(manifest.features, row, onFrame(predict));

  function setRow(codes) {
    codes.forEach((value, i) => { row[i] = fromCode(manifest.features[i], value); });
    input.refresh();
    predict();
  }

  const next = el("button", {
    type: "button",
    onclick: () => { example = (example + 1) % golden.length; setRow(golden[example]); },
  }, width ? "Random pixels" : "Next example");
  const clear = width
    ? el("button", { type: "button", onclick: () => setRow(row.map(() => 0)) }, "Clear")
    : null;

  const left = el("div", { class: "input" },
    el("h2", {}, width ? "Draw" : "The row"),
    width
      ? el("p", { id: "grid-help", class: "quiet" },
        "Draw with the mouse or a finger. With the keyboard: arrows move, Space inks or clears a pixel, Delete clears it.")
      : el("p", { class: "quiet" },
        "An example from the training ranges, with no person's data. The bars behind a slider are the training rows."),
    input.node,
    el("p", { class: "buttons" }, clear, next));
  section.replaceChildren(
    el("div", { class: "columns" }, left, el("div", {}, el("h2", {}, "The answer"), answer.node)),
    why.node,
    code.node);
  if (width) setRow(row.map(() => 0));
  else await predict();
  return () => { ended = true; };
}
