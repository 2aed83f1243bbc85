// The request as code: what is on the screen, ready to be run elsewhere. The key is never part of it.

import { keyNeeded } from "./api.js";
import { el, freshId, text, toClipboard } from "./dom.js";
import { Photo } from "./photos.js";
import { t } from "./words.js";

const LANGUAGES = { curl: "curl", python: "Python", javascript: "JavaScript" };
const KEY = "COLDSTREAM_API_KEY";

export class Code {
  // `describe` says what the request is: { path, body }, where a photo is a Photo rather than its bytes.
  constructor(describe) {
    this.describe = describe;
    const id = freshId("code");
    this.title = el("summary");
    this.label = el("label", { for: id, class: "hidden" });
    const options = Object.entries(LANGUAGES).map(([value, name]) => el("option", { value }, name));
    this.select = el("select", { id, onchange: () => this.draw() }, ...options);
    this.button = el("button", { type: "button", onclick: () => void this.#copy() });
    this.pre = el("pre", { tabIndex: 0, role: "region" });
    this.root = el(
      "details",
      { class: "code", ontoggle: () => this.draw() },
      this.title,
      el("div", { class: "actions" }, this.label, this.select, this.button),
      this.pre,
    );
    this.translate();
  }

  translate() {
    text(this.title, t("code.title"));
    text(this.label, t("code.language"));
    text(this.button, t("copy"));
    this.pre.setAttribute("aria-label", t("code.title"));
  }

  draw() {
    if (this.root.open) text(this.pre, write(this.select.value, this.describe(), new URL(".", location.href).href));
  }

  async #copy() {
    await toClipboard(this.pre.textContent);
    text(this.button, t("copied"));
    setTimeout(() => text(this.button, t("copy")), 1500);
  }
}

export function write(language, { path, body }, base) {
  return { curl, python, javascript }[language](base + path, body);
}

// JSON in which each photo is a mark, and the photos in the order of their marks.
function marked(body, indent) {
  const photos = [];
  const json = JSON.stringify(
    body,
    (_, value) => (value instanceof Photo ? `\u0000${photos.push(value) - 1}` : value),
    indent,
  );
  return { json, photos };
}

const withPhotos = (json, photos, write) => json.replace(/"\\u0000(\d+)"/g, (_, index) => write(photos[index]));

function curl(url, body) {
  const { json, photos } = marked(body, 2);
  const lines = [`curl ${shell(url)}`, `-H 'Content-Type: application/json'`];
  if (keyNeeded()) lines.push(`-H "Authorization: Bearer $${KEY}"`);
  if (!photos.length) return [...lines, `-d ${shell(json)}`].join(" \\\n  ");
  if (!("messages" in body)) return curlForm(url, body, lines.slice(2));
  // A photo is too long for a command line, so the body goes through a here-document, in which the shell reads files.
  const escaped = json.replace(/"\\u0000\d+"|[\\$`]/g, (found) => (found.length > 1 ? found : `\\${found}`));
  const document = withPhotos(escaped, photos, (photo) => `"data:${photo.type};base64,$(base64 < ${shell(photo.name)} | tr -d '\\n')"`);
  return `${[...lines, "-d @- <<JSON"].join(" \\\n  ")}\n${document}\nJSON`;
}

// With photos, a form (multipart/form-data), whose files curl reads itself.
function curlForm(url, body, headers) {
  const fields = Object.entries(body).flatMap(([name, value]) => {
    if (name === "inputs") return Object.entries(value).map(([input, given]) => [`inputs.${input}`, given]);
    return Array.isArray(value) ? value.map((item) => [name, item]) : [[name, value]];
  });
  const parts = fields.map(([name, value]) =>
    value instanceof Photo ? `-F ${shell(`${name}=@"${value.name}"`)}` : `--form-string ${shell(`${name}=${value}`)}`,
  );
  return [`curl ${shell(url)}`, ...headers, ...parts].join(" \\\n  ");
}

const shell = (word) => `'${word.replaceAll("'", `'\\''`)}'`;

// There is neither true, false nor null in these bodies, so JSON is Python as it is.
function python(url, body) {
  const { json, photos } = marked(body, 4);
  const data = withPhotos(json, photos, (photo) => `photo(${JSON.stringify(photo.name)}, ${JSON.stringify(photo.type)})`);
  const imports = ["json", ...(keyNeeded() ? ["os"] : []), "urllib.request", ...(photos.length ? ["base64", "pathlib"] : [])];
  const reader = [
    "",
    "def photo(name, kind):",
    '    return f"data:{kind};base64,{base64.b64encode(pathlib.Path(name).read_bytes()).decode()}"',
    "",
  ];
  const headers = [`"Content-Type": "application/json"`];
  if (keyNeeded()) headers.push(`"Authorization": f"Bearer {os.environ['${KEY}']}"`);
  return [
    ...imports.sort().map((name) => `import ${name}`),
    ...(photos.length ? reader : []),
    "",
    `body = ${data}`,
    "request = urllib.request.Request(",
    `    ${JSON.stringify(url)},`,
    "    data=json.dumps(body).encode(),",
    `    headers={${headers.join(", ")}},`,
    ")",
    "with urllib.request.urlopen(request) as response:",
    `    print(json.load(response)${"messages" in body ? '["choices"][0]["message"]["content"]' : ""})`,
  ].join("\n");
}

function javascript(url, body) {
  const { json, photos } = marked(body, 2);
  const data = withPhotos(json, photos, (photo) => `await photo(${JSON.stringify(photo.name)}, ${JSON.stringify(photo.type)})`);
  const reader = [
    'import { readFile } from "node:fs/promises";',
    "",
    "const photo = async (name, kind) => `data:${kind};base64,${await readFile(name, \"base64\")}`;",
    "",
  ];
  const headers = [`"Content-Type": "application/json"`];
  if (keyNeeded()) headers.push(`Authorization: \`Bearer \${process.env.${KEY}}\``);
  return [
    ...(photos.length ? reader : []),
    `const response = await fetch(${JSON.stringify(url)}, {`,
    `  method: "POST",`,
    `  headers: { ${headers.join(", ")} },`,
    `  body: JSON.stringify(${data.replaceAll("\n", "\n  ")}),`,
    "});",
    `console.log((await response.json())${"messages" in body ? ".choices[0].message.content" : ""});`,
  ].join("\n");
}
