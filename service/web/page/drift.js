// Drift and quality: the live histogram of each feature over its training histogram, and the live accuracy.

import { get, hasKey } from "./api.js";
import { drawHistograms } from "./charts.js";
import { el, percent, short, table } from "./dom.js";
import { momentText } from "./features.js";

const FEW = 12; // features that are shown at first: those with the largest index
const STATES = { drift: "bad", "moderate drift": "bad", stable: "good" };
const MEASURES = { accuracy: "accuracy", log_loss: "log loss", rmse: "RMSE", mae: "MAE" };

/** Ask for the drift of the shown version, and draw it. A key without the scope metrics gets the reason of the server. */
export async function showDrift(state) {
  const path = `v1/models/${state.name}/versions/${state.version}/drift`;
  try {
    return drawDrift(await get(path, { ask: false }), state.manifest, path);
  } catch (error) {
    const reason = error.status === 404 ? "the drift is on the admin port" : error.message;
    return card(el("p", { class: "quiet" }, `The server does not show it here: ${reason}.`));
  }
}

function card(...content) {
  return el("section", { class: "card", "aria-label": "Drift" }, el("h2", {}, "Drift: live rows against the training rows"), ...content);
}

function drawDrift(drift, manifest, path) {
  const since = drift.since.slice(0, 16).replace("T", " ");
  const counted = drift.sampled ? `, of which ${drift.counted} were counted` : "";
  return card(
    el("p", {}, el("strong", { class: STATES[drift.state] ?? "" }, drift.state),
      `: ${drift.rows} rows since ${since} UTC${counted}.`),
    ...drift.notes.map((note) => el("p", {}, note)),
    hasKey() ? null : el("p", {}, el("a", { href: path }, "The same as a page")),
    drift.state === "off" ? null : features(drift, manifest),
    predictions(drift.predictions),
    quality(drift.quality));
}

function features(drift, manifest) {
  const sorted = drift.features.map((each, i) => ({ ...each, reading: manifest.features[i]?.reading, categories: manifest.features[i]?.categories }))
    .sort((a, b) => (b.psi ?? -1) - (a.psi ?? -1));
  const place = el("div", {});
  const show = (count) => {
    place.replaceChildren(table("Features with the largest index first. Bars: training rows. Line: live rows.",
      ["feature", "state", "training and live", "index (PSI)", "missing", "outside or unseen"], sorted.slice(0, count).map(row)));
    if (count < sorted.length) {
      place.append(el("button", { type: "button", onclick: () => show(sorted.length) }, `Show all ${sorted.length} features`));
    }
  };
  show(FEW);
  return place;
}

function row(feature) {
  const outside = feature.kind === "categorical" ? feature.unseen : feature.below === null ? null : feature.below + feature.above;
  const share = (value) => (value === null ? "–" : percent(value));
  return [feature.name, el("span", { class: STATES[feature.state] ?? "quiet" }, feature.state),
    drawHistograms(feature.name, feature.training, feature.live, ends(feature)),
    short(feature.psi, 3), share(feature.missing), share(outside)];
}

/** Return the texts of the first and the last bin. */
function ends(feature) {
  if (feature.categories?.length) return [String(feature.categories[0]), String(feature.categories.at(-1))];
  const [low, high] = [feature.edges[0], feature.edges.at(-1)];
  if (feature.kind === "time" && feature.reading) return [momentText(feature.reading, low), momentText(feature.reading, high)];
  return [short(low), short(high)];
}

function predictions({ labels, confidence, mean, deviation }) {
  if (labels === null) return mean === null ? null : el("p", {}, `Predicted values: mean ${short(mean)}, standard deviation ${short(deviation)}.`);
  if (confidence === null) return null;
  const sorted = [...labels].sort((a, b) => b.share - a.share);
  const texts = sorted.slice(0, FEW).map(({ label, share }) => `${label}: ${percent(share)}`);
  const more = sorted.length > FEW ? `, and ${sorted.length - FEW} other labels` : "";
  return el("p", {}, `Predicted labels: ${texts.join(", ")}${more}. Their mean probability is ${percent(confidence)}.`);
}

function quality({ state, labels, live, test, accuracy_interval: interval }) {
  if (state === "off") return null;
  const heading = el("h3", {}, "Quality on live labels");
  if (!live) return el("div", {}, heading, el("p", { class: "quiet" }, "No label has arrived at v1/models/{model}/feedback yet."));
  const rows = Object.entries(MEASURES).filter(([key]) => key in live).map(([key, name]) => [name, short(live[key]), short(test?.[key])]);
  const range = interval ? ` The live accuracy is between ${percent(interval[0])} and ${percent(interval[1])}, with a confidence of 95 %.` : "";
  return el("div", {}, heading, el("p", {}, `${labels} labels${state === "measured" ? "" : `: ${state}`}.${range}`),
    table("Live labels and test rows", ["measure", "live", "test rows"], rows));
}
