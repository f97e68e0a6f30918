// "Score a table": a CSV that a person pastes, drops or chooses; its predictions, and errors by row and column.

import { post } from "./api.js";
import { same } from "./answer.js";
import { format, parse } from "./csv.js";
import { download, el, percent, short } from "./dom.js";
import { classNames, fromCode } from "./features.js";

const CHUNK = 1000; // rows of one request
const PAGE = 50; // rows that are shown at once
const MOST_REFUSED = 200; // rows that the server may refuse before the scoring stops
const TRUE = ["true", "1", "yes"];
const FALSE = ["false", "0", "no"];

export function showTable(section, state, { report }) {
  const { manifest } = state;
  const text = el("textarea", { id: "csv", spellcheck: "false", placeholder: manifest.features.map((f) => f.name).join(",").slice(0, 300) });
  const file = el("input", { id: "csv-file", type: "file", accept: ".csv,.tsv,.txt,text/csv" });
  const result = el("div", {});
  const progress = el("p", { role: "status", class: "quiet" });
  let turn = 0;

  async function score(content) {
    const mine = ++turn;
    report(null);
    result.replaceChildren();
    try {
      const scored = await scoreTable(state, parse(content), (done, all) => {
        if (mine === turn) progress.textContent = `${done} of ${all} rows`;
        return mine === turn;
      });
      if (mine === turn && scored) showResult(result, progress, state, scored);
    } catch (error) {
      progress.textContent = "";
      report(error);
    }
  }

  const drop = el("div", { class: "drop" },
    el("p", {}, el("label", { for: "csv" }, "Paste a CSV with a header here, drop a file, or ")),
    el("p", {}, el("label", { for: "csv-file" }, "choose a file "), file),
    text,
    el("p", { class: "buttons" },
      el("button", { type: "button", onclick: () => score(text.value) }, "Score"),
      el("button", { type: "button", onclick: () => { text.value = goldenTable(manifest); } }, "Fill in an example")));
  text.addEventListener("paste", (event) => {
    const pasted = event.clipboardData.getData("text");
    if (text.value === "" && pasted.includes("\n")) setTimeout(() => score(text.value));
  });
  file.addEventListener("change", async () => { if (file.files.length) score(await file.files[0].text()); });
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", async (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const [dropped] = event.dataTransfer.files;
    score(dropped ? await dropped.text() : event.dataTransfer.getData("text"));
  });
  section.replaceChildren(el("h2", {}, "Score a table"), drop, progress, result);
  return () => { turn += 1; };
}

function goldenTable(manifest) {
  const rows = manifest.golden.inputs.map((row) => row.map((code, i) => fromCode(manifest.features[i], code)));
  return format([manifest.features.map((feature) => feature.name), ...rows]);
}

/** Score the rows of a table. onProgress returns false to stop. Returns null if it was stopped. */
async function scoreTable(state, { head, rows }, onProgress) {
  const { manifest, path } = state;
  const places = head.map((name) => manifest.features.findIndex((feature) => feature.name === name));
  const constant = (feature) => !feature.missing && (feature.range ? feature.range[0] === feature.range[1] : feature.categories.length === 1);
  const lacking = manifest.features.filter((feature) => !head.includes(feature.name) && !constant(feature));
  if (lacking.length) {
    throw new Error(`The table lacks ${lacking.length} column${lacking.length > 1 ? "s" : ""} of the model: ${lacking.slice(0, 5).map((f) => f.name).join(", ")}${lacking.length > 5 ? ", ..." : ""}.`);
  }
  const ignored = head.filter((_, column) => places[column] < 0);
  const scored = rows.map(({ line, cells }) => ({ line, cells, errors: [], prediction: null, share: null }));
  const errors = [];
  const fail = (row, column, why) => {
    row.errors.push(column);
    errors.push({ line: row.line, column: head[column] ?? "", why });
  };
  const ready = [];
  for (const row of scored) {
    if (row.cells.length !== head.length) {
      fail(row, -1, `has ${row.cells.length} cells, and the header has ${head.length}`);
      continue;
    }
    const instance = {};
    places.forEach((place, column) => {
      if (place < 0) return;
      const feature = manifest.features[place];
      const { value, why } = readCell(feature, row.cells[column]);
      if (why) fail(row, column, why);
      else instance[feature.name] = value;
    });
    if (!row.errors.length) ready.push({ row, instance });
  }
  const started = performance.now();
  let refused = 0;
  for (let start = 0; start < ready.length; start += CHUNK) {
    let chunk = ready.slice(start, start + CHUNK);
    while (chunk.length) {
      if (!onProgress(start, rows.length)) return null;
      try {
        const { answer } = await post(`${path}:predict`, { instances: chunk.map((each) => each.instance) });
        chunk.forEach(({ row }, i) => {
          row.prediction = answer.predictions[i];
          const label = manifest.labels.findIndex((each) => same(each, row.prediction));
          row.probabilities = answer.probabilities?.[i] ?? null;
          row.share = row.probabilities?.[label] ?? null;
        });
        break;
      } catch (error) {
        // The server names the first bad row. Without this row, the others can be scored.
        const found = error.status === 400 || error.status === 422 ? /^row (\d+)(?:, column (['"])(.*?)\2)? (.*)$/s.exec(error.message) : null;
        if (!found || (refused += 1) > MOST_REFUSED) throw error;
        const bad = chunk[Number(found[1])].row;
        fail(bad, head.indexOf(found[3]), found[4]);
        chunk = chunk.filter((_, i) => i !== Number(found[1]));
      }
    }
  }
  errors.sort((a, b) => a.line - b.line);
  return { head, rows: scored, errors, ignored, milliseconds: performance.now() - started };
}

function readCell(feature, cell) {
  const bare = cell.trim();
  if (bare === "") return feature.missing ? { value: null } : { why: "is empty, and training has seen no missing value" };
  if (feature.reading) return { value: cell };
  if (feature.kind === "boolean") {
    const lower = bare.toLowerCase();
    if (TRUE.includes(lower)) return { value: true };
    return FALSE.includes(lower) ? { value: false } : { why: "is neither true nor false" };
  }
  const number = Number(bare);
  if (feature.kind === "categorical") {
    const texts = feature.categories.some((each) => typeof each === "string");
    if (texts && (Number.isNaN(number) || feature.categories.includes(bare) || !feature.categories.includes(number))) return { value: bare };
  }
  return Number.isFinite(number) ? { value: number } : { why: "is not a number" };
}

function showResult(result, progress, state, { head, rows, errors, ignored, milliseconds }) {
  const { manifest } = state;
  const names = classNames(manifest);
  const good = rows.filter((row) => row.prediction !== null).length;
  progress.textContent = `${good} of ${rows.length} rows scored in ${milliseconds.toFixed(0)} ms`
    + (errors.length ? `; ${errors.length} errors` : "")
    + (ignored.length ? `; ignored the columns ${ignored.join(", ")}` : "");
  const target = manifest.target?.name ?? "prediction";
  const extra = names.length ? [target, "probability"] : [target];
  let page = 0;
  const body = el("tbody", {});
  const where = el("span", { role: "status" });
  const back = el("button", { type: "button", onclick: () => turnTo(page - 1) }, "Previous rows");
  const next = el("button", { type: "button", onclick: () => turnTo(page + 1) }, "Next rows");
  const pages = Math.ceil(rows.length / PAGE);

  function turnTo(wanted) {
    page = Math.min(pages - 1, Math.max(0, wanted));
    body.replaceChildren(...rows.slice(page * PAGE, (page + 1) * PAGE).map((row) => el("tr", {},
      el("th", { scope: "row" }, String(row.line)),
      el("td", { class: row.errors.length ? "bad" : "good" }, row.prediction === null ? "error" : typeof row.prediction === "number" && !names.length ? short(row.prediction, 6) : String(row.prediction)),
      names.length ? el("td", {}, row.share === null ? "" : percent(row.share)) : null,
      row.cells.map((cell, column) => el("td", { class: row.errors.includes(column) ? "bad" : null }, cell)))));
    where.textContent = `Rows ${page * PAGE + 1} to ${Math.min(rows.length, (page + 1) * PAGE)} of ${rows.length}`;
    back.disabled = page === 0;
    next.disabled = page === pages - 1;
  }

  function save() {
    const shares = names.map((name) => `probability of ${name}`);
    const cells = rows.map((row) => [...row.cells, row.prediction ?? "", ...(row.probabilities ?? names.map(() => ""))]);
    download(`${manifest.name}-scored.csv`, "text/csv", format([[...head, target, ...shares], ...cells]));
  }

  turnTo(0);
  // replaceChildren would write null as a text, and `el` leaves it out.
  result.replaceChildren(el("div", {},
    errors.length ? el("div", {}, el("h3", {}, "Errors"), el("ul", { class: "errors" }, errors.slice(0, 100).map((error) =>
      el("li", {}, `line ${error.line}${error.column ? `, column ${error.column}` : ""}: ${error.why}`))),
    errors.length > 100 ? el("p", {}, `and ${errors.length - 100} more errors`) : null) : null,
    el("p", { class: "buttons" }, el("button", { type: "button", onclick: save }, "Download the scored table"), back, next, where),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Scored rows" },
      el("table", {}, el("thead", {}, el("tr", {}, ["line", ...extra, ...head].map((name) => el("th", { scope: "col" }, name)))), body))));
}
