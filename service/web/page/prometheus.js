// Reads Prometheus's text format, as far as the metrics of this service need it.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/** Return the samples of the text: objects with name, labels and value. wanted: the names that are kept. */
export function parseMetrics(text, wanted) {
  const samples = [];
  for (const line of text.split("\n")) {
    if (line.startsWith("#")) continue;
    const found = LINE.exec(line);
    if (!found || !wanted.some((name) => found[1].startsWith(name))) continue;
    const labels = Object.fromEntries([...(found[2] ?? "").matchAll(LABEL)].map(([, name, value]) => [name, value]));
    samples.push({ name: found[1], labels, value: Number(found[3]) });
  }
  return samples;
}

/** Return the sum of the samples with this name that `keep` accepts. */
export function sum(samples, name, keep = () => true) {
  return samples.reduce((total, each) => (each.name === name && keep(each.labels) ? total + each.value : total), 0);
}

/** Return the counts of a histogram by upper bound, summed over its series. */
export function buckets(samples, name, keep) {
  const counts = new Map();
  for (const each of samples) {
    if (each.name === `${name}_bucket` && keep(each.labels)) {
      const bound = each.labels.le === "+Inf" ? Infinity : Number(each.labels.le);
      counts.set(bound, (counts.get(bound) ?? 0) + each.value);
    }
  }
  return counts;
}

/** Estimate a quantile from the growth of a histogram between two scrapes, as Prometheus's histogram_quantile does. */
export function quantile(share, before, after) {
  const bounds = [...after.keys()].sort((a, b) => a - b);
  const growth = bounds.map((bound) => after.get(bound) - (before.get(bound) ?? 0));
  const total = growth.at(-1) ?? 0;
  if (!total) return NaN;
  const rank = share * total;
  const i = growth.findIndex((count) => count >= rank);
  if (bounds[i] === Infinity) return bounds[i - 1] ?? NaN;
  const [low, below] = i ? [bounds[i - 1], growth[i - 1]] : [0, 0];
  return low + ((bounds[i] - low) * (rank - below)) / (growth[i] - below || 1);
}
