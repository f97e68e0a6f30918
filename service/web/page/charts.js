// Charts as SVG: a curve along a feature, and a line over time.

import { el, percent, short, svg } from "./dom.js";
import { fromCode, toCode } from "./features.js";

const [WIDTH, HEIGHT] = [360, 170];
// The edges of the plot in a chart with axes. The labels of the axes are outside.
const [LEFT, RIGHT, TOP, BOTTOM] = [48, WIDTH - 8, 8, HEIGHT - 20];
const MOST_LABELLED = 6; // bars that have a label each
const CHARACTER = 7; // the width of a character in a label

function range(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = Math.max(0.5, Math.abs(low) / 100);
  return high > low ? [low, high] : [low - room, high + room];
}

/** Return round numbers from `low` to `high`, at most `most` + 1 of them. */
function ticks(low, high, most) {
  const power = 10 ** Math.floor(Math.log10((high - low) / most));
  const step = power * [1, 2, 5, 10].find((each) => each * power * most >= (high - low) * (1 - 1e-9));
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
}

/** Write a code of a feature as a label of an axis. */
function label(feature, code) {
  if (feature.kind !== "time") return short(code);
  const text = fromCode(feature, code);
  const [low, high] = feature.range;
  return feature.reading.step === "day" || high - low > 72 ? text.slice(0, 10) : text.slice(5, 16).replace("T", " ");
}

function cut(text, width) {
  const most = Math.max(2, Math.floor(width / CHARACTER));
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

/** Draw a label below the plot, inside the chart. */
function labelBelow(x, text) {
  const half = (text.length * CHARACTER) / 2;
  const inside = Math.min(WIDTH - half, Math.max(half, x));
  return svg("text", { class: "tick", x: inside.toFixed(1), y: HEIGHT - 6, "text-anchor": "middle" }, text);
}

/** Draw the answers `ys` along the values `xs` of a feature. current: the value of the row. */
export function drawCurve(title, feature, xs, ys, current) {
  const discrete = feature.kind === "categorical" || feature.kind === "boolean";
  const isShare = title.startsWith("Probability");
  const codes = discrete ? xs.map((_, i) => i) : xs.map((value) => toCode(feature, value));
  const [left, right] = discrete ? [-0.5, xs.length - 0.5] : range(codes);
  const [low, high] = isShare ? [0, 1] : range(ys);
  const x = (code) => LEFT + ((RIGHT - LEFT) * (code - left)) / (right - left);
  const y = (value) => BOTTOM - ((BOTTOM - TOP) * (value - low)) / (high - low);
  const words = isShare ? percent : (value) => short(value, 5);
  const [least, most] = [Math.min(...ys), Math.max(...ys)];
  const chart = svg("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "chart", role: "img",
    "aria-label": `${title} along ${feature.name}: from ${words(least)} to ${words(most)}`,
  });
  for (const tick of ticks(low, high, 4)) {
    chart.append(
      svg("line", { class: "grid-line", x1: LEFT, x2: RIGHT, y1: y(tick), y2: y(tick) }),
      svg("text", { class: "tick", x: LEFT - 5, y: y(tick) + 4, "text-anchor": "end" }, isShare ? `${Math.round(100 * tick)} %` : short(tick)));
  }
  if (discrete) {
    const each = (RIGHT - LEFT) / xs.length;
    const wide = Math.max(1, each * 0.7);
    ys.forEach((value, i) => chart.append(svg("rect", {
      x: x(i) - wide / 2, y: y(value), width: wide, height: Math.max(0, BOTTOM - y(value)),
      class: xs[i] === current ? "mark" : "column",
    }, svg("title", {}, `${xs[i]}: ${words(value)}`))));
    const few = xs.length <= MOST_LABELLED;
    const labelled = few ? xs.map((_, i) => i) : [0, xs.length - 1];
    chart.append(...labelled.map((i) => labelBelow(x(i), cut(String(xs[i]), few ? each : 120))));
  } else {
    const marks = feature.kind === "time" ? [...new Set(ticks(left, right, 2).map(Math.round))] : ticks(left, right, 5);
    chart.append(...marks.flatMap((mark) => [
      svg("line", { class: "grid-line", x1: x(mark), x2: x(mark), y1: BOTTOM, y2: BOTTOM + 4 }),
      labelBelow(x(mark), label(feature, mark)),
    ]));
    chart.append(svg("path", { class: "line-of-chart", d: codes.map((code, i) => `${i ? "L" : "M"}${x(code).toFixed(1)} ${y(ys[i]).toFixed(1)}`).join("") }));
    if (current !== null) chart.append(svg("line", { class: "mark", x1: x(toCode(feature, current)), x2: x(toCode(feature, current)), y1: TOP, y2: BOTTOM }));
  }
  return el("figure", {},
    el("figcaption", {}, `${title}: ${words(least)} to ${words(most)}`), chart,
    el("div", { class: "axis", "aria-hidden": "true" }, feature.name));
}

/** Draw lines over time. lines: arrays of numbers of the same length; NaN leaves a gap. */
export function drawTimeline(lines, label) {
  const values = lines.flat().filter(Number.isFinite);
  const high = Math.max(1e-9, ...values);
  const count = Math.max(2, lines[0].length);
  const chart = svg("svg", { viewBox: `0 0 ${WIDTH} 90`, class: "chart", preserveAspectRatio: "none", role: "img", "aria-label": label });
  lines.forEach((line, which) => {
    let pen = "M";
    const path = line.map((value, i) => {
      if (!Number.isFinite(value)) { pen = "M"; return ""; }
      const point = `${pen}${((WIDTH * i) / (count - 1)).toFixed(1)} ${(86 - (82 * value) / high).toFixed(1)}`;
      pen = "L";
      return point;
    }).join("");
    chart.append(svg("path", { class: which ? "line-of-chart second" : "line-of-chart", d: path }));
  });
  return chart;
}

/** Draw the live rows of a feature as a line of steps over the bars of its training rows. ends: texts of the outer bins. */
export function drawHistograms(name, training, live, ends) {
  const shares = (counts) => {
    const total = counts.reduce((sum, count) => sum + count, 0);
    return counts.map((count) => (total ? count / total : 0));
  };
  const [trained, seen] = [shares(training), shares(live)];
  const [wide, high] = [100 / trained.length, 36];
  const top = Math.max(1e-9, ...trained, ...seen);
  const y = (share) => high - (high * share) / top;
  const words = (values) => values.some(Boolean) ? `most in bin ${values.indexOf(Math.max(...values)) + 1}` : "no rows";
  const chart = svg("svg", {
    viewBox: `0 -1 100 ${high + 2}`, class: "chart", preserveAspectRatio: "none", role: "img",
    "aria-label": `${name}, ${trained.length} bins: training, ${words(trained)}; live, ${words(seen)}`,
  }, trained.map((share, i) => svg("rect", { class: "column", x: i * wide, y: y(share), width: wide * 0.92, height: high - y(share) })));
  if (seen.some(Boolean)) {
    chart.append(svg("path", { class: "steps", d: `M0 ${high}${seen.map((share, i) => `V${y(share).toFixed(2)}H${((i + 1) * wide).toFixed(2)}`).join("")}V${high}` }));
  }
  return el("figure", { class: "twin" }, chart,
    el("div", { class: "ends", "aria-hidden": "true" }, el("span", {}, ends[0]), el("span", {}, ends[1])));
}
