// Drift: the live figures of each feature beside its training histogram, where the server has them.

import { el, short, table } from "./dom.js";

/** Draw the document of /v1/models/{model}/drift. Numbers and short texts of each feature become columns. */
export function drawDrift(drift) {
  const features = Array.isArray(drift.features) ? drift.features
    : Object.entries(drift.features ?? {}).map(([name, values]) => ({ name, ...values }));
  if (!features.length) return el("section", { class: "card" }, el("h2", {}, "Drift"), el("p", {}, "The server has no live rows of this model yet."));
  const columns = [...new Set(features.flatMap((each) => Object.keys(each)))]
    .filter((name) => name !== "name" && features.every((each) => each[name] === null || ["number", "string", "boolean", "undefined"].includes(typeof each[name])));
  const cell = (value) => (typeof value === "number" ? short(value, 3) : value === null || value === undefined ? "–" : String(value));
  return el("section", { class: "card", "aria-label": "Drift" }, el("h2", {}, "Drift: live rows against the training rows"),
    table("Drift by feature", ["feature", ...columns.map((name) => name.replaceAll("_", " "))],
      features.map((each) => [each.name, ...columns.map((name) => cell(each[name]))])));
}
