// "Models": versions and their states, the certificate and its proof, the report, a comparison, and commands.

import { get, getText, hasKey, post } from "./api.js";
import { compareVersions } from "./compare.js";
import { download, el, short, table } from "./dom.js";
import { showDrift } from "./drift.js";
import { prove } from "./proof.js";

export async function showModels(section, state, context) {
  const { models } = await get("v1/models");
  section.replaceChildren(...models.map((model) => card(model, state, context)));
  if (state.manifest) {
    section.append(await details(state));
    section.append(await showDrift(state), compareVersions(state, models));
  }
}

function card(model, state, context) {
  const message = el("p", { role: "status" });
  const rows = model.versions.map((each) => [
    String(each.version) + (each.version === model.current ? " (current)" : ""),
    el("span", { class: each.state === "ready" ? "good" : "bad" }, each.state),
    (each.provider ?? "–").replace("ExecutionProvider", ""),
    [each.why, each.note].filter(Boolean).join("; "),
    el("span", { class: "buttons" }, each.state === "ready" ? reportLink(model.name, each.version, context) : null,
      commands(model, each, message, context)),
  ]);
  return el("section", { class: "card", "aria-label": `Model ${model.name}` }, el("h2", {}, model.name),
    model.versions.length ? table(`Versions of ${model.name}`, ["version", "state", "device", "reason", "actions"], rows) : el("p", {}, "This model has no version."),
    message);
}

/** A link to the report. With a key, the browser can't send the key with a link, so the report becomes a file. */
function reportLink(name, version, { report }) {
  const path = `v1/models/${name}/versions/${version}/report`;
  const label = el("span", { class: "hidden" }, ` of ${name} version ${version}`);
  if (!hasKey()) return el("a", { href: path, target: "_blank", rel: "noopener" }, "Report", label);
  const save = async () => {
    try {
      download(`${name}-${version}-report.html`, "text/html", await getText(path));
    } catch (error) {
      report(error);
    }
  };
  return el("button", { type: "button", onclick: save }, "Save the report", label);
}

/** The commands of operators. They need a key with the scope admin, so they are shown only with a key. */
function commands(model, version, message, { reload }) {
  if (!hasKey()) return null;
  const kinds = version.state === "ready"
    ? [...(version.version === model.current ? [] : ["rollback", "promote"]), "unload"]
    : ["load"];
  return kinds.map((kind) => el("button", {
    type: "button",
    onclick: async () => {
      message.textContent = `${kind} ${model.name} version ${version.version} ...`;
      try {
        await post(`v2/repository/models/${model.name}/${kind}`, { parameters: { version: String(version.version) } });
        await reload();
      } catch (error) {
        message.textContent = `${kind}: ${error.message}`;
      }
    },
  }, kind, el("span", { class: "hidden" }, ` ${model.name} version ${version.version}`)));
}

async function details(state) {
  const { manifest } = state;
  const { certificate, folded, metrics } = manifest;
  const result = el("p", { role: "status" });
  const again = el("button", {
    type: "button",
    onclick: async () => {
      result.textContent = "...";
      try {
        const found = await prove(manifest);
        result.className = found.holds ? "good" : "bad";
        result.textContent = `${found.holds ? "It holds" : "It does not hold"}: ${found.outputs} outputs of ${found.rows} golden rows differ by at most `
          + `${short(found.difference, 3)}, which is ${short(100 * found.share, 3)} % of the tolerance (${found.milliseconds.toFixed(1)} ms).`;
      } catch (error) {
        result.className = "bad";
        result.textContent = error.message;
      }
    },
  }, "Prove it again now");
  const measured = certificate.measurements.map(({ runtime, rows, batch, parity }) =>
    [runtime, rows, String(batch), String(parity.rows), short(parity.max_absolute, 3), `${short(100 * parity.worst, 3)} %`]);
  return el("section", { class: "card", "aria-label": "Certificate" },
    el("h2", {}, `${state.name} version ${state.version}`),
    el("p", { class: "quiet" }, `Created ${manifest.created.slice(0, 16).replace("T", " ")}; ${manifest.features.length} features; ${manifest.task}`
      + `${manifest.labels.length ? ` with ${manifest.labels.length} classes` : ""}; ${(manifest.model.size / 1024).toFixed(0)} KiB; ${manifest.source ? `imported from ${manifest.source.file}` : `trained on ${manifest.provenance.source}`}.`),
    el("h3", {}, "Certificate"),
    el("p", {}, `Reference: ${certificate.reference}. Tolerance: ${certificate.tolerance.absolute} + ${certificate.tolerance.relative} × |output|.`
      + (certificate.widened > 1 ? ` This is ${short(certificate.widened, 2)} times the usual tolerance.` : "")),
    el("p", { class: "buttons" }, again), result,
    table("Measured differences", ["runtime", "rows", "batch", "count", "largest difference", "of the tolerance"], measured),
    folded.length ? table("Folded layers", ["layer", "into", "rule"], folded.map(({ layer, rule, into }) => [layer, into, rule])) : null,
    Object.keys(metrics).length ? table("Metrics", ["rows", ...Object.keys(Object.values(metrics)[0])],
      Object.entries(metrics).map(([part, values]) => [part, ...Object.values(values).map((value) => short(value))])) : null);
}
