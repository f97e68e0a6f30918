// Two versions of a model side by side: metrics, hyper-parameters, features and files.

import { get } from "./api.js";
import { el, short, table } from "./dom.js";

export function compareVersions(state, models) {
  const versions = models.find((each) => each.name === state.name).versions.filter((each) => each.state === "ready");
  if (versions.length < 2) return el("p", { class: "quiet" }, "With two versions that serve, this page compares them.");
  const other = el("select", { id: "other" }, versions.filter((each) => each.version !== state.version).reverse()
    .map((each) => el("option", { value: each.version }, `version ${each.version}`)));
  const result = el("div", {});
  const show = async () => {
    const second = await get(`v1/models/${state.name}/versions/${other.value}/metadata`);
    result.replaceChildren(draw(second, state.manifest));
  };
  other.addEventListener("change", show);
  show();
  return el("section", { class: "card", "aria-label": "Comparison" }, el("h2", {}, "Two versions"),
    el("p", {}, el("label", { for: "other" }, `Compare version ${state.version} with `), other), result);
}

function draw(before, after) {
  const [a, b] = [flat(before), flat(after)];
  const names = [...new Set([...Object.keys(a), ...Object.keys(b)])];
  const changed = names.filter((name) => a[name] !== b[name]);
  const rows = changed.map((name) => [name, a[name] ?? "–", b[name] ?? "–"]);
  return rows.length ? table("Differences", ["", `version ${before.version}`, `version ${after.version}`], rows)
    : el("p", {}, "The two versions differ in nothing but their number.");
}

function flat(manifest) {
  const lines = { created: manifest.created.slice(0, 19), "size of the model": String(manifest.model.size), "sha256 of the model": manifest.model.sha256.slice(0, 16) };
  for (const [part, values] of Object.entries(manifest.metrics)) {
    for (const [name, value] of Object.entries(values)) lines[`${part}: ${name.replaceAll("_", " ")}`] = short(value, 5);
  }
  for (const [name, value] of Object.entries(manifest.provenance.hyperparameters)) lines[name.replaceAll("_", " ")] = String(value);
  lines.data = manifest.provenance.data_sha256.slice(0, 16);
  lines.rows = Object.values(manifest.provenance.rows).join(" + ");
  lines.labels = manifest.labels.slice(0, 20).join(", ");
  lines.threshold = manifest.threshold ? String(manifest.threshold.value) : "–";
  for (const feature of manifest.features) {
    lines[`feature ${feature.name}`] = [feature.kind, feature.range ? feature.range.map((value) => short(value)).join(" to ") : `${feature.categories.length} categories`, feature.missing ? "may be missing" : ""].filter(Boolean).join(", ");
  }
  return lines;
}
