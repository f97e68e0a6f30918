// Sends requests to the server of this page. If the server asks for an API key, the module asks the person for one.
// The key is kept in sessionStorage at most: it belongs to this tab, and ends with it.

const STORED = "foldserve-key";

export class ApiError extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

let asking = null;

export function hasKey() {
  return sessionStorage.getItem(STORED) !== null;
}

/** Return the JSON of a response. ask: whether to ask for a key after a 401 or 403. */
export async function get(path, { ask = true } = {}) {
  return (await send("GET", path, null, ask)).json();
}

export async function getText(path, { ask = false } = {}) {
  return (await send("GET", path, null, ask)).text();
}

/** Send JSON, and return the JSON of the response with the milliseconds that it took. */
export async function post(path, body, { ask = true } = {}) {
  const started = performance.now();
  const response = await send("POST", path, JSON.stringify(body), ask);
  const text = await response.text();
  return { answer: text ? JSON.parse(text) : null, milliseconds: performance.now() - started };
}

async function send(method, path, body, ask) {
  for (;;) {
    const key = sessionStorage.getItem(STORED);
    const headers = key === null ? {} : { "X-API-Key": key };
    if (body !== null) headers["Content-Type"] = "application/json";
    const response = await fetch(path, { method, body, headers });
    if (response.ok) return response;
    const text = await response.json().then((content) => content.error, () => `status ${response.status}`);
    const wantsKey = response.status === 401 || (response.status === 403 && key !== null);
    if (!ask || !wantsKey || !(await askForKey(text))) throw new ApiError(response.status, text);
  }
}

/** Ask for a key once, even if several requests need one. Returns whether there is a new key. */
function askForKey(why) {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key");
    const input = document.getElementById("key-text");
    document.getElementById("key-why").textContent = `The server says: ${why}.`;
    input.value = "";
    dialog.returnValue = "cancel";
    dialog.addEventListener("close", () => {
      asking = null;
      const given = dialog.returnValue === "use" && input.value !== "";
      if (given) sessionStorage.setItem(STORED, input.value);
      input.value = "";
      resolve(given);
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}
