// The code that sends exactly the request on the page: curl, Python, tritonclient. A key is never part of it.

import { hasKey } from "./api.js";
import { el } from "./dom.js";
import { named, toCode } from "./features.js";

/** Create the code of a model. path: of its version in the friendly protocol. */
export function createCode(manifest, path) {
  const base = new URL(".", location.href).href.replace(/\/$/, "");
  const tabs = { curl: (row) => curl(base, path, manifest, row), Python: (row) => python(base, path, manifest, row), tritonclient: (row) => triton(base, manifest, row) };
  const text = el("code");
  const copy = el("button", { type: "button" }, "Copy");
  const select = el("select", { id: "language" }, Object.keys(tabs).map((name) => el("option", {}, name)));
  const node = el("details", { class: "code" },
    el("summary", {}, "The code of this request"),
    el("p", { class: "buttons" }, el("label", { for: "language" }, "Language "), select, copy),
    el("pre", { tabindex: 0, "aria-label": "Code" }, text));
  let current = [];

  function draw() {
    if (node.open) text.textContent = tabs[select.value](current);
  }

  select.addEventListener("change", draw);
  node.addEventListener("toggle", draw);
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text.textContent);
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });
  return { node, show(row) { current = row; draw(); } };
}

function curl(base, path, manifest, row) {
  const body = JSON.stringify({ instances: [named(manifest, row)] }).replaceAll("'", "'\\''");
  const key = hasKey() ? ' \\\n  -H "X-API-Key: $FOLDSERVE_KEY"' : "";
  return `curl '${base}/${path}:predict' \\\n  -H 'Content-Type: application/json'${key} \\\n  -d '${body}'`;
}

function literal(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  return JSON.stringify(value);
}

function python(base, path, manifest, row) {
  const cells = manifest.features.map((feature, i) => `    ${JSON.stringify(feature.name)}: ${literal(row[i])},`);
  const key = hasKey() ? ', "X-API-Key": os.environ["FOLDSERVE_KEY"]' : "";
  return [
    `import json${hasKey() ? ", os" : ""}`, "from urllib.request import Request, urlopen", "",
    "row = {", ...cells, "}",
    `body = json.dumps({"instances": [row]}).encode()`,
    `headers = {"Content-Type": "application/json"${key}}`,
    `request = Request("${base}/${path}:predict", body, headers)`,
    "print(json.load(urlopen(request)))",
  ].join("\n");
}

function triton(base, manifest, row) {
  const numbers = manifest.features.map((feature, i) => toCode(feature, row[i])).map((code) => (Number.isNaN(code) ? "np.nan" : code));
  const host = base.replace(/^https?:\/\//, "");
  const secure = base.startsWith("https:") ? ", ssl=True" : "";
  const key = hasKey() ? ', headers={"X-API-Key": os.environ["FOLDSERVE_KEY"]}' : "";
  return [
    ...(hasKey() ? ["import os"] : []),
    "import numpy as np", "import tritonclient.http as triton", "",
    `client = triton.InferenceServerClient("${host}"${secure})`,
    "# A category is its index, a missing value is NaN.",
    `rows = np.array([[${numbers.join(", ")}]], np.float32)`,
    `tensor = triton.InferInput("${manifest.input.name}", rows.shape, "FP32")`,
    "tensor.set_data_from_numpy(rows)",
    `result = client.infer("${manifest.name}", [tensor], "${manifest.version}"${key})`,
    `print(result.as_numpy("${manifest.output.name}"))`,
  ].join("\n");
}
