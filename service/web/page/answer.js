// The answer to one row: the predicted class or value, the probability of each class as a bar, the time and the device.

import { el, percent, short } from "./dom.js";
import { classNames } from "./features.js";

const MOST = 10; // classes that are shown at once
// The classes below these ten are drawn less often, because there may be thousands.
const REST_MILLISECONDS = 500;

/** Create the answer of a model. */
export function createAnswer(manifest) {
  const names = classNames(manifest);
  const headline = el("p", { class: "headline", role: "status" });
  const timing = el("p", { class: "quiet" });
  const list = el("div", { class: "bars" });
  const all = el("details", { hidden: names.length <= MOST },
    el("summary", {}, `All ${names.length} classes`));
  const rest = el("div", { class: "bars" });
  all.append(rest);
  const bars = new Map();
  let last = null;
  all.addEventListener("toggle", () => { if (all.open && last) fillRest(last); });
  let spoken = 0;
  let planned = 0; // the timer of the next drawing of the rest

  function bar(i) {
    if (!bars.has(i)) {
      const line = el("span", { class: "bar" }, el("span", { class: "filled" }));
      if (manifest.threshold && same(manifest.labels[i], manifest.threshold.positive)) {
        const mark = el("span", { class: "threshold", title: `threshold ${manifest.threshold.value}` });
        mark.style.left = `${100 * manifest.threshold.value}%`;
        line.append(mark);
      }
      const value = el("span", { class: "value" });
      bars.set(i, { node: el("div", { class: "line" }, el("span", { class: "name" }, names[i]), line, value), line, value });
    }
    return bars.get(i);
  }

  function draw(i, share, best) {
    const { node, line, value } = bar(i);
    line.firstChild.style.width = `${100 * share}%`;
    value.textContent = percent(share);
    node.classList.toggle("best", best);
    return node;
  }

  // The lines stay in the document, and only their contents change.
  const lines = [];

  function fillRest(probabilities) {
    const order = probabilities.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a]).slice(MOST);
    while (lines.length < order.length) {
      const line = { name: el("span", { class: "name" }), bar: el("span", { class: "filled" }), value: el("span", { class: "value" }) };
      lines.push(line);
      rest.append(el("div", { class: "line" }, line.name, el("span", { class: "bar" }, line.bar), line.value));
    }
    order.forEach((i, place) => {
      const line = lines[place];
      const text = percent(probabilities[i]);
      if (line.name.textContent !== names[i]) line.name.textContent = names[i];
      if (line.value.textContent !== text) line.value.textContent = text;
      line.bar.style.width = `${100 * probabilities[i]}%`;
    });
  }

  function show({ answer, milliseconds }, provider) {
    const [predicted] = answer.predictions;
    timing.textContent = `${milliseconds.toFixed(1)} ms for the request · ${provider.replace("ExecutionProvider", "")} · version ${answer.version}`;
    if (!answer.probabilities) {
      speak(`${manifest.target?.name ?? "Value"}: ${short(predicted, 6)}`);
      return;
    }
    const [probabilities] = answer.probabilities;
    last = probabilities;
    const chosen = manifest.labels.findIndex((label) => same(label, predicted));
    speak(`${manifest.target?.name ?? "Class"}: ${names[chosen]}, ${percent(probabilities[chosen])}`);
    // Few classes keep their order, so that the bars only grow and shrink.
    const order = names.length <= MOST
      ? names.map((_, i) => i)
      : probabilities.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a]).slice(0, MOST);
    const drawn = order.map((i) => draw(i, probabilities[i], i === chosen));
    if (names.length > MOST || list.childElementCount !== drawn.length) list.replaceChildren(...drawn);
    if (all.open && planned === 0) planned = setTimeout(() => { planned = 0; fillRest(last); }, REST_MILLISECONDS);
  }

  // A screen reader would not keep up with every move of a stroke.
  function speak(text) {
    const now = performance.now();
    headline.setAttribute("aria-live", now - spoken > 700 ? "polite" : "off");
    if (headline.textContent !== text) spoken = now;
    headline.textContent = text;
  }

  const { threshold } = manifest;
  const rule = threshold
    ? el("p", { class: "quiet" }, `The answer is ${JSON.stringify(threshold.positive)} from a probability of ${threshold.value} (rule ${threshold.rule}).`)
    : null;
  return { node: el("div", { class: "answer" }, headline, list, all, rule, timing), show };
}

export function same(label, other) {
  return typeof label === typeof other && label === other;
}
