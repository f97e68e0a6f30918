// Starts the page: chooses the model and the version, and shows the part of the page that the address names.

import { get } from "./api.js";
import { el } from "./dom.js";
import { showLive } from "./live.js";
import { showModels } from "./models.js";
import { showTable } from "./scoring.js";
import { showTry } from "./try.js";

const SECONDS = 3; // between two looks at the list of models
const PARTS = { try: showTry, table: showTable, models: showModels, live: showLive };

const model = document.getElementById("model");
const version = document.getElementById("version");
const main = document.getElementById("main");
const problem = document.getElementById("problem");

// The state that all parts share. path: of the chosen version in the friendly protocol.
const state = { models: [], name: "", version: 0, isCurrent: true, path: "", manifest: null, provider: "" };
let leave = () => {};
let turn = 0;
let pending = 0; // changes that have begun and have not ended; the page is busy until then

export function report(error) {
  problem.textContent = error === null ? "" : error.message;
  problem.hidden = error === null;
}

async function loadModels() {
  const { models, default: preferred } = await get("v1/models");
  state.models = models;
  const ready = models.filter((each) => each.ready);
  if (!ready.length) throw new Error("No model serves. The part Models has the reasons.");
  const wanted = [state.name, preferred, ready[0].name].find((name) => ready.some((each) => each.name === name));
  model.replaceChildren(...models.map((each) => el("option", { value: each.name, disabled: !each.ready }, each.name)));
  model.value = wanted;
  fillVersions();
}

function fillVersions() {
  const chosen = state.models.find((each) => each.name === model.value);
  const serving = chosen.versions.filter((each) => each.state === "ready").reverse();
  version.replaceChildren(...serving.map((each) =>
    el("option", { value: each.version }, each.version === chosen.current ? `${each.version} (current)` : each.version)));
  // A person who looks at the current version gets the version that replaces it, but keeps a drawing or a table.
  const keeps = !state.isCurrent || ["try", "table"].includes(currentPart());
  const kept = state.name === chosen.name && keeps ? state.version : chosen.current;
  version.value = serving.some((each) => each.version === kept) ? kept : serving[0].version;
}

async function loadManifest() {
  state.name = model.value;
  state.version = Number(version.value);
  state.path = `v1/models/${state.name}/versions/${state.version}`;
  const found = state.models.find((each) => each.name === state.name);
  state.isCurrent = found.current === state.version;
  state.provider = found.versions.find((each) => each.version === state.version)?.provider ?? "";
  state.manifest = await get(`${state.path}/metadata`);
}

function currentPart() {
  const part = location.hash.slice(1);
  return part in PARTS ? part : "try";
}

async function show() {
  const mine = ++turn;
  leave();
  leave = () => {};
  const part = currentPart();
  for (const name of Object.keys(PARTS)) {
    const section = document.getElementById(`part-${name}`);
    section.hidden = name !== part;
    if (name !== part) section.replaceChildren();
  }
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#${part}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  await working(async () => {
    await guarded(async () => {
      const left = await PARTS[part](document.getElementById(`part-${part}`), state, { reload, report });
      if (mine === turn) leave = left ?? (() => {});
      else left?.();
    });
    if (mine === turn) main.dataset.shown = `${part} ${state.name} ${state.version}`;
  });
}

/** Load the list of models again, and show the part again. */
async function reload() {
  await working(async () => {
    await guarded(async () => {
      await loadModels();
      await loadManifest();
    });
    await show();
  });
}

/** Look for a change of the models or versions, while the page is visible. The chosen version stays chosen. */
async function watch() {
  if (document.visibilityState !== "visible") return;
  const found = await get("v1/models", { ask: false }).catch(() => null); // the server may restart
  if (found === null || JSON.stringify(found.models) === JSON.stringify(state.models)) return;
  const chosen = `${state.name} ${state.version}`;
  await guarded(loadModels);
  const stays = `${model.value} ${version.value}` === chosen;
  if (!stays) await guarded(loadManifest);
  if (!stays || currentPart() === "models") await show();
}

async function guarded(action) {
  try {
    report(null);
    await action();
  } catch (error) {
    report(error);
  }
}

/** Do a change. Until the last change has ended, the page says that it is busy. */
async function working(change) {
  pending += 1;
  main.ariaBusy = "true";
  try {
    await change();
  } finally {
    pending -= 1;
    if (pending === 0) main.ariaBusy = "false";
  }
}

const change = (load) => working(() => guarded(async () => { await load(); await show(); }));
model.addEventListener("change", () => change(() => { fillVersions(); return loadManifest(); }));
version.addEventListener("change", () => change(loadManifest));
addEventListener("hashchange", () => {
  if (location.hash === "#main") return;
  show().then(() => main.focus({ preventScroll: true }));
});

await reload();
setInterval(watch, SECONDS * 1000);
