// "Why": the contributions of the features to an answer, and the curve of the answer along one feature.

import { post } from "./api.js";
import { same } from "./answer.js";
import { drawCurve } from "./charts.js";
import { el, short, svg } from "./dom.js";
import { classNames, fromCode, toCode } from "./features.js";

const MOST = 12; // contributions that are shown at once
const POINTS = 41;

/** Create the part. row: the current row. width: of the grid of pixels, or 0. */
export function createWhy(state, row, width, report) {
  const { manifest, path } = state;
  const names = classNames(manifest);
  const chosen = el("select", { id: "why-class" },
    el("option", { value: "" }, "the predicted class"), names.map((name, i) => el("option", { value: i }, name)));
  const text = el("p", { class: "quiet" });
  const list = el("div", { class: "bars" });
  const heat = width ? svg("svg", { viewBox: `0 0 ${width} ${width}`, class: "heat", role: "img", "aria-label": "Contribution of each pixel" }) : null;
  const feature = el("select", { id: "what-if" }, manifest.features.map((each, i) => el("option", { value: i }, each.name)));
  const curve = el("div", { class: "curve" });
  let sent = null;
  let predicted = null;
  let refused = false;
  let moved = false; // whether the person has chosen a feature

  async function update(values, prediction) {
    [sent, predicted] = [values, prediction];
    if (!node.open) return;
    await explainAndDraw();
  }

  async function explainAndDraw() {
    await explain();
    await drawWhatIf();
  }

  async function explain() {
    if (refused) return;
    const query = chosen.value === "" ? "" : `?class=${encodeURIComponent(names[chosen.value])}`;
    let answer;
    try {
      ({ answer } = await post(`${path}:explain${query}`, { instances: [sent] }));
    } catch (error) {
      if (error.status !== 422) throw error;
      refused = error.message.includes("can't be explained");
      text.textContent = `${error.message}.`;
      list.replaceChildren();
      return;
    }
    const [found] = answer.explanations;
    const total = "logit" in found ? found.logit : found.value;
    const of = "logit" in found ? `The logit of ${JSON.stringify(found.class)}` : "The value";
    const how = answer.method === "affine" ? "exact: the network is affine around this row" : "integrated gradients";
    text.textContent = `${of} is ${short(total, 5)} = ${short(found.offset, 5)} (offset) + the contributions of the features (${how}).`;
    drawBars(Object.entries(found.contributions));
    if (!moved) feature.value = indexOfLargest(Object.values(found.contributions));
    if (heat) drawHeat(Object.values(found.contributions));
  }

  function drawBars(entries) {
    const largest = Math.max(1e-12, ...entries.map(([, value]) => Math.abs(value)));
    const order = entries.toSorted((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
    const rest = order.slice(MOST).reduce((sum, [, value]) => sum + value, 0);
    const shown = order.slice(0, MOST);
    if (order.length > MOST) shown.push([`the other ${order.length - MOST}`, rest]);
    list.replaceChildren(...shown.map(([name, value]) => {
      const filled = el("span", { class: value < 0 ? "filled against" : "filled" });
      const length = 50 * Math.min(1, Math.abs(value) / largest);
      filled.style.width = `${length}%`;
      filled.style.marginLeft = `${value < 0 ? 50 - length : 50}%`;
      return el("div", { class: "line" }, el("span", { class: "name" }, name),
        el("span", { class: "bar signed" }, filled), el("span", { class: "value" }, `${value > 0 ? "+" : ""}${short(value, 3)}`));
    }));
  }

  function drawHeat(values) {
    const largest = Math.max(1e-12, ...values.map(Math.abs));
    heat.replaceChildren(...values.map((value, i) => svg("rect", {
      x: i % width, y: Math.floor(i / width), width: 1.02, height: 1.02,
      class: value < 0 ? "against" : "for", "fill-opacity": (Math.abs(value) / largest).toFixed(3),
    })));
  }

  // The curve shows the class of the prediction: the probability of this class, or the value.
  async function drawWhatIf() {
    const i = Number(feature.value);
    const along = valuesAlong(manifest.features[i], sent[i]);
    const rows = along.map((value) => sent.map((kept, place) => (place === i ? value : kept)));
    const { answer } = await post(`${path}:predict`, { instances: rows });
    const place = chosen.value === "" ? manifest.labels.findIndex((label) => same(label, predicted)) : Number(chosen.value);
    const ys = answer.probabilities ? answer.probabilities.map((each) => each[place]) : answer.predictions;
    const title = answer.probabilities ? `Probability of ${names[place]}` : manifest.target?.name ?? "Value";
    curve.replaceChildren(drawCurve(title, manifest.features[i], along, ys, sent[i]));
  }

  const guarded = (action) => () => action().catch(report);
  feature.addEventListener("change", guarded(() => { moved = true; return drawWhatIf(); }));
  chosen.addEventListener("change", guarded(explainAndDraw));
  const node = el("details", { class: "why" },
    el("summary", {}, "Why this answer, and what if a feature were different"),
    names.length ? el("p", {}, el("label", { for: "why-class" }, "Explain "), chosen) : null,
    text,
    el("div", { class: "columns" },
      el("div", {}, el("h3", {}, "Contributions"), list, heat),
      el("div", {}, el("h3", {}, "What if"), el("p", {}, el("label", { for: "what-if" }, "Move "), feature), curve)));
  node.addEventListener("toggle", () => {
    if (node.open && sent) explainAndDraw().catch(report);
  });
  return { node, update };
}

function indexOfLargest(values) {
  return values.reduce((best, value, i) => (Math.abs(value) > Math.abs(values[best]) ? i : best), 0);
}

/** Return the values of a feature along which the curve is drawn: its training range and the current value. */
function valuesAlong(feature, current) {
  if (feature.kind === "boolean") return [false, true];
  if (feature.kind === "categorical") return [...feature.categories];
  const [low, high] = feature.range;
  const code = current === null ? low : toCode(feature, current);
  const [start, end] = [Math.min(low, code), Math.max(high, code)];
  const codes = Array.from({ length: POINTS }, (_, i) => start + ((end - start) * i) / (POINTS - 1));
  if (feature.kind === "time") return [...new Set(codes.map(Math.round))].map((each) => fromCode(feature, each));
  return codes;
}
