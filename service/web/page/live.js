// "Live": rate, latency, batches and queue from the service's own metrics, while this part and the tab are visible.

import { getText } from "./api.js";
import { drawTimeline } from "./charts.js";
import { el, short } from "./dom.js";
import { buckets, parseMetrics, quantile, sum } from "./prometheus.js";

const SECONDS = 2;
const MOST = 90; // points of a chart
const NAMES = ["foldserve_requests_total", "foldserve_request_seconds", "foldserve_batch_rows", "foldserve_queued_rows", "foldserve_rejected_total", "foldserve_request_rows_total"];

const CHARTS = [
  { title: "Requests a second", lines: ["rate"], text: (p) => short(p.rate, 3) },
  { title: "Latency in milliseconds, p50 and p99", lines: ["p50", "p99"], text: (p) => `${short(p.p50, 3)} and ${short(p.p99, 3)}` },
  { title: "Rows of a batch, mean", lines: ["batch"], text: (p) => short(p.batch, 3) },
  { title: "Rows that wait", lines: ["queue"], text: (p) => short(p.queue, 3) },
  { title: "Rows a second", lines: ["rows"], text: (p) => short(p.rows, 3) },
  { title: "Requests with an error, a second", lines: ["errors"], text: (p) => short(p.errors, 3) },
];

export async function showLive(section, state, { report }) {
  const points = [];
  let before = null;
  let timer = 0;
  const figures = CHARTS.map(() => el("p", { class: "figure" }, "–"));
  const places = CHARTS.map(() => el("div", {}));
  const note = el("p", { class: "quiet" }, `Every ${SECONDS} seconds while this part is visible. The figures are those of the model ${state.name}, all versions.`);
  section.replaceChildren(el("h2", {}, "Live"), note, el("div", { class: "columns" }, CHARTS.map((chart, i) =>
    el("section", { "aria-label": chart.title }, el("h3", {}, chart.title), figures[i], places[i]))));

  async function poll() {
    if (document.visibilityState !== "visible") return;
    try {
      const samples = parseMetrics(await getText("metrics", { ask: true }), NAMES);
      const now = { time: performance.now() / 1000, ...totals(samples, state.name) };
      if (before) {
        points.push(rates(before, now));
        if (points.length > MOST) points.shift();
        draw();
      }
      before = now;
    } catch (error) {
      stop();
      const reason = error.status === 404 ? "This port has no metrics: they are off, or on the admin port." : error.message;
      report(new Error(reason));
    }
  }

  function draw() {
    CHARTS.forEach((chart, i) => {
      figures[i].textContent = chart.text(points.at(-1));
      places[i].replaceChildren(drawTimeline(chart.lines.map((name) => points.map((point) => point[name])), `${chart.title}: now ${figures[i].textContent}`));
    });
  }

  function start() {
    stop();
    if (document.visibilityState !== "visible") { before = null; return; }
    poll();
    timer = setInterval(poll, SECONDS * 1000);
  }

  function stop() {
    clearInterval(timer);
  }

  document.addEventListener("visibilitychange", start);
  start();
  return () => {
    stop();
    document.removeEventListener("visibilitychange", start);
  };
}

function totals(samples, model) {
  const own = (labels) => labels.model === model;
  return {
    requests: sum(samples, "foldserve_requests_total", own),
    errors: sum(samples, "foldserve_requests_total", (labels) => own(labels) && labels.status !== "200"),
    rows: sum(samples, "foldserve_request_rows_total", own),
    batches: sum(samples, "foldserve_batch_rows_count", own),
    batched: sum(samples, "foldserve_batch_rows_sum", own),
    queue: sum(samples, "foldserve_queued_rows", own),
    seconds: buckets(samples, "foldserve_request_seconds", own),
  };
}

function rates(before, now) {
  const elapsed = now.time - before.time;
  const grown = (name) => now[name] - before[name];
  return {
    rate: grown("requests") / elapsed,
    rows: grown("rows") / elapsed,
    errors: grown("errors") / elapsed,
    batch: grown("batches") ? grown("batched") / grown("batches") : NaN,
    queue: now.queue,
    p50: 1000 * quantile(0.5, before.seconds, now.seconds),
    p99: 1000 * quantile(0.99, before.seconds, now.seconds),
  };
}
