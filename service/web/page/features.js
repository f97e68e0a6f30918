// Converts the values of a row: codes of the model's input, values of the friendly protocol, and texts of a control.

/** Return the names of the classes as `?named=true` writes them. */
export function classNames(manifest) {
  const texts = manifest.labels.map((label) => JSON.stringify(label));
  const names = manifest.labels.map((label, i) => (typeof label === "string" ? label : texts[i]));
  return new Set(names).size === names.length ? names : texts;
}

/** Return the friendly value of a code. An unseen category becomes the last category. */
export function fromCode(feature, code) {
  if (code === null) return null;
  if (feature.kind === "boolean") return Boolean(code);
  if (feature.kind === "categorical") return feature.categories[Math.min(code, feature.categories.length - 1)];
  if (feature.kind === "time") return momentText(feature.reading, code);
  return code;
}

/** Return the code of a friendly value; NaN for a missing value. */
export function toCode(feature, value) {
  if (value === null) return NaN;
  if (feature.kind === "boolean") return Number(value);
  if (feature.kind === "categorical") {
    const place = feature.categories.indexOf(value);
    return place < 0 ? feature.categories.length : place;
  }
  if (feature.kind === "time") return momentNumber(feature.reading, value);
  return value;
}

const STEP = { day: 86_400_000, hour: 3_600_000 };

export function momentText(reading, number) {
  const text = new Date(Date.parse(`${reading.origin}T00:00:00Z`) + number * STEP[reading.step]).toISOString();
  if (reading.step === "day" && !reading.zoned) return text.slice(0, 10);
  return reading.zoned ? `${text.slice(0, 19)}Z` : text.slice(0, 19);
}

export function momentNumber(reading, text) {
  const plain = text.length === 10 ? `${text}T00:00:00Z` : /[Zz]|[+-]\d\d:?\d\d$/.test(text.slice(10)) ? text : `${text}Z`;
  return Math.floor((Date.parse(plain) - Date.parse(`${reading.origin}T00:00:00Z`)) / STEP[reading.step]);
}

/** Say in words where a value is outside the training data; "" if it is inside. */
export function outside(feature, value) {
  if (value === null || value === undefined) return "";
  if (feature.kind === "categorical") return feature.categories.includes(value) ? "" : "not seen in training";
  const code = toCode(feature, value);
  const [low, high] = feature.range;
  if (code < low) return `below the training range, ${fromCode(feature, low)} to ${fromCode(feature, high)}`;
  if (code > high) return `above the training range, ${fromCode(feature, low)} to ${fromCode(feature, high)}`;
  return "";
}

/** Return the width of the square if the features are the pixels of one, in order; otherwise 0. */
export function pixelWidth(manifest) {
  const width = Math.sqrt(manifest.features.length);
  const isPixel = (feature, i) =>
    feature.kind === "numeric" && feature.name === `pixel_${Math.floor(i / width)}_${i % width}`;
  return width >= 2 && width <= 32 && Number.isInteger(width) && manifest.features.every(isPixel) ? width : 0;
}

/** Return the row as an object by feature name. */
export function named(manifest, row) {
  return Object.fromEntries(manifest.features.map((feature, i) => [feature.name, row[i]]));
}
