// /docs: the API's own description as a page. Nothing comes from elsewhere.

import { $, el, text } from "../playground/dom.js";
import { fields, operations, resolved, words } from "./schema.js";

const STORED = "coldstream-key"; // the playground's

function stored() {
  try {
    return sessionStorage.getItem(STORED) ?? "";
  } catch {
    return ""; // storage is switched off
  }
}

async function show(key) {
  const reply = await fetch("openapi.json", key ? { headers: { authorization: `Bearer ${key}` } } : {});
  $("key").hidden = reply.status !== 401;
  if (reply.status === 401) return text($("state"), key ? "This key is not known here" : "The description asks for a key");
  if (!reply.ok) return text($("state"), `The server answered ${reply.status}; reload the page`);
  const api = await reply.json();
  text($("state"), `${api.info.title} ${api.info.version}`);
  $("operations").replaceChildren(...operations(api).map((operation) => described(operation, api)));
}

function described(operation, api) {
  const about = operation.description ?? operation.summary ?? "";
  const summary = el("summary", {}, `${operation.method} ${operation.path} `, el("span", {}, about));
  const bodies = Object.entries(operation.requestBody?.content ?? {});
  const sent = bodies.flatMap(([kind, { schema }]) => part(`Request: ${kind}`, schema, api));
  const answers = Object.entries(operation.responses ?? {}).map(([status, answer]) => row(status, answered(answer, api), answer.description ?? ""));
  const given = (operation.parameters ?? []).map((item) => row(item.name, words(item.schema ?? {}, api), item.description ?? ""));
  return el(
    "details",
    {},
    summary,
    ...(given.length ? [el("h3", {}, "Parameters"), table(given)] : []),
    ...sent,
    el("h3", {}, "Answers"),
    table(answers),
  );
}

function answered(answer, api) {
  return Object.entries(answer.content ?? {})
    .map(([kind, { schema }]) => (schema ? `${kind}: ${words(schema, api)}` : kind))
    .join("; ");
}

function part(title, schema, api) {
  const found = fields(schema, api);
  const rows = found.map((field) => row(field.name + (field.required ? " *" : ""), field.type, field.about));
  const about = resolved(schema, api).description;
  return [el("h3", {}, title), ...(about ? [el("p", {}, about)] : []), table(rows)];
}

function row(...cells) {
  return el("tr", {}, ...cells.map((cell) => el("td", {}, cell)));
}

function table(rows) {
  return el("div", { class: "wide" }, el("table", {}, el("tbody", {}, ...rows)));
}

$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  tried($("key-value").value);
});

function tried(key) {
  show(key).catch(() => text($("state"), "The server does not answer; reload the page"));
}

tried(stored());
