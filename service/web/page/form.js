// A form with the right control for each feature: a slider over the histogram, a list of categories, a date, missing.

import { el, svg } from "./dom.js";
import { fromCode, momentNumber, outside } from "./features.js";

/** Create the form. row: the values of the friendly protocol, which the form changes. onChange: called after each. */
export function createForm(features, row, onChange) {
  const fields = features.map((feature, i) => createField(feature, i, row, onChange));
  const list = el("div", { class: features.length > 60 ? "fields many" : "fields" }, fields.map((field) => field.node));
  const node = el("form", { class: "features", autocomplete: "off", onsubmit: (event) => event.preventDefault() });
  if (features.length > 12) {
    const find = el("input", { id: "find", type: "search", placeholder: "part of a name" });
    find.addEventListener("input", () => {
      const part = find.value.toLowerCase();
      fields.forEach((field, i) => { field.node.hidden = !features[i].name.toLowerCase().includes(part); });
    });
    node.append(el("p", { class: "find" }, el("label", { for: "find" }, `Find one of ${features.length} features`), find));
  }
  node.append(list);
  return { node, refresh: () => fields.forEach((field) => field.refresh()) };
}

function createField(feature, i, row, onChange) {
  const id = `feature-${i}`;
  const note = el("span", { class: "warn", id: `${id}-note` });
  const control = CONTROLS[feature.kind](feature, id, row[i]);
  let missing = null;
  const node = el("div", { class: "field" }, el("label", { for: id }, feature.name), control.node, note);

  function changed(value) {
    row[i] = value;
    mark();
    onChange();
  }

  function mark() {
    note.textContent = outside(feature, row[i]);
    node.classList.toggle("outside", note.textContent !== "");
  }

  control.onInput(changed);
  if (feature.missing) {
    missing = el("input", { type: "checkbox", id: `${id}-missing` });
    missing.addEventListener("change", () => {
      control.enable(!missing.checked);
      changed(missing.checked ? null : control.value());
    });
    note.before(el("span", { class: "missing" }, missing,
      el("label", { for: `${id}-missing` }, "missing", el("span", { class: "hidden" }, ` ${feature.name}`))));
  }

  function refresh() {
    if (missing) missing.checked = row[i] === null;
    control.enable(row[i] !== null);
    if (row[i] !== null) control.set(row[i]);
    mark();
  }

  refresh();
  return { node, refresh };
}

function histogram(feature) {
  const { counts } = feature.histogram;
  const most = Math.max(1, ...counts);
  const bars = counts.map((count, i) => {
    const height = count ? Math.max(1.5, (28 * count) / most) : 0;
    return `M${(100 * i) / counts.length} 28v${-height}h${100 / counts.length}v${height}z`;
  });
  return svg("svg", { viewBox: "0 0 100 28", preserveAspectRatio: "none", class: "histogram", "aria-hidden": "true" },
    svg("path", { d: bars.join("") }));
}

function numeric(feature, id) {
  const [low, high] = feature.range;
  const whole = Number.isInteger(low) && Number.isInteger(high) && high - low >= 2;
  const step = whole ? 1 : Number(((high - low) / 200 || 0.01).toPrecision(1));
  const number = el("input", { id, type: "number", step: "any", "aria-describedby": `${id}-note`, required: true });
  const slider = el("input", {
    type: "range", min: low, max: high, step: "any", "aria-label": `${feature.name}, slider`,
  });
  slider.disabled = low === high;
  const round = (value) => (whole ? Math.round(value) : Number(value.toPrecision(Math.max(3, 2 - Math.floor(Math.log10(step))))));
  slider.addEventListener("keydown", (event) => {
    const sign = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (sign) {
      slider.value = Number(slider.value) + sign * step;
      slider.dispatchEvent(new Event("input"));
      event.preventDefault();
    }
  });
  return {
    node: el("span", { class: "numeric" }, el("span", { class: "ranged" }, histogram(feature), slider), number),
    onInput(changed) {
      slider.addEventListener("input", () => { number.value = round(Number(slider.value)); changed(Number(number.value)); });
      number.addEventListener("input", () => {
        if (number.value === "" || !Number.isFinite(number.valueAsNumber)) return;
        slider.value = number.value;
        changed(number.valueAsNumber);
      });
    },
    value: () => (number.value === "" ? low : Number(number.value)),
    set(value) { number.value = value; slider.value = value; },
    enable(on) { number.disabled = !on; slider.disabled = !on || low === high; },
  };
}

function choice(feature, id, values) {
  const select = el("select", { id, "aria-describedby": `${id}-note` }, values.map((value, i) => el("option", { value: i }, String(value))));
  return {
    node: el("span", { class: "choice" }, select, histogram(feature)),
    onInput(changed) { select.addEventListener("change", () => changed(values[Number(select.value)])); },
    value: () => values[Number(select.value)],
    set(value) { select.value = values.indexOf(value); },
    enable(on) { select.disabled = !on; },
  };
}

function time(feature, id) {
  const { reading } = feature;
  const byDay = reading.step === "day";
  const length = byDay ? 10 : 16;
  const input = el("input", { id, type: byDay ? "date" : "datetime-local", "aria-describedby": `${id}-note`, required: true });
  const text = () => fromCode(feature, momentNumber(reading, byDay ? input.value : `${input.value}:00`));
  const current = () => (input.value === "" ? fromCode(feature, feature.range[0]) : text());
  return {
    node: el("span", { class: "choice" }, input, histogram(feature)),
    onInput(changed) { input.addEventListener("input", () => { if (input.value !== "") changed(text()); }); },
    value: current,
    set(value) { input.value = value.slice(0, length); },
    enable(on) { input.disabled = !on; },
  };
}

const CONTROLS = {
  numeric,
  time,
  boolean: (feature, id) => choice(feature, id, [false, true]),
  categorical: (feature, id) => choice(feature, id, feature.categories),
};
