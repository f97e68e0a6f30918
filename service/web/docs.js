// Shows openapi.json. If the server needs an API key, asks for one, and sends it with the requests of "Try it out".

"use strict";

async function load() {
  let key = null;
  for (;;) {
    const response = await fetch("openapi.json", key === null ? {} : { headers: { "X-API-Key": key } });
    if (response.status !== 401) {
      return { response, key };
    }
    key = window.prompt(key === null ? "API key" : "This key is not valid. API key");
    if (!key) {
      return { response, key: null };
    }
  }
}

load().then(async ({ response, key }) => {
  const page = document.getElementById("swagger-ui");
  const content = await response.json();
  if (!response.ok) {
    page.textContent = content.error;
    return;
  }
  SwaggerUIBundle({
    spec: content,
    domNode: page,
    deepLinking: true,
    layout: "BaseLayout",
    presets: [SwaggerUIBundle.presets.apis],
    requestInterceptor(request) {
      if (key !== null && !("Authorization" in request.headers)) {
        request.headers["X-API-Key"] = key;
      }
      return request;
    },
  });
}).catch((error) => {
  document.getElementById("swagger-ui").textContent = String(error);
});
