// Charts as SVG: a curve along a feature, and a line over time.

import { el, percent, short, svg } from "./dom.js";
import { toCode } from "./features.js";

const [WIDTH, HEIGHT] = [360, 150];

function range(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return high > low ? [low, high] : [low - 0.5, high + 0.5];
}

/** Draw the answers `ys` along the values `xs` of a feature. current: the value of the row. */
export function drawCurve(title, feature, xs, ys, current) {
  const discrete = feature.kind === "categorical" || feature.kind === "boolean";
  const isShare = title.startsWith("Probability");
  const codes = discrete ? xs.map((_, i) => i) : xs.map((value) => toCode(feature, value));
  const [left, right] = discrete ? [-0.5, xs.length - 0.5] : range(codes);
  const [low, high] = isShare ? [0, 1] : range(ys);
  const x = (code) => 4 + ((WIDTH - 8) * (code - left)) / (right - left);
  const y = (value) => HEIGHT - 4 - ((HEIGHT - 8) * (value - low)) / (high - low);
  const words = isShare ? percent : (value) => short(value, 5);
  const [least, most] = [Math.min(...ys), Math.max(...ys)];
  const chart = svg("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "chart", role: "img",
    "aria-label": `${title} along ${feature.name}: from ${words(least)} to ${words(most)}`,
  });
  if (discrete) {
    const wide = Math.max(1, ((WIDTH - 8) / xs.length) * 0.7);
    ys.forEach((value, i) => chart.append(svg("rect", {
      x: x(i) - wide / 2, y: y(value), width: wide, height: Math.max(0, HEIGHT - 4 - y(value)),
      class: xs[i] === current ? "mark" : "column",
    }, svg("title", {}, `${xs[i]}: ${words(value)}`))));
  } else {
    chart.append(svg("path", { class: "line-of-chart", d: codes.map((code, i) => `${i ? "L" : "M"}${x(code).toFixed(1)} ${y(ys[i]).toFixed(1)}`).join("") }));
    if (current !== null) chart.append(svg("line", { class: "mark", x1: x(toCode(feature, current)), x2: x(toCode(feature, current)), y1: 0, y2: HEIGHT }));
  }
  const ends = discrete ? [String(xs[0]), String(xs.at(-1))] : [xs[0], xs.at(-1)].map((value) => (typeof value === "number" ? short(value) : value));
  return el("figure", {},
    el("figcaption", {}, `${title}: ${words(least)} to ${words(most)}`), chart,
    el("div", { class: "ends", "aria-hidden": "true" }, el("span", {}, ends[0]), el("span", {}, feature.name), el("span", {}, ends[1])));
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
