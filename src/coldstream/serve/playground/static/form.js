// Form fields with a label, a help text and a place for what the server says about them.

import { el, freshId, text } from "./dom.js";
import { t } from "./words.js";

export class Field {
  // `control` is what takes the value; `name` is what the API calls it.
  constructor({ name, control, label, help = "", optional = false }) {
    const id = freshId("field");
    this.name = name;
    this.control = control;
    this.label = el("label", { for: id }, label);
    this.tag = el("span", { class: "dim tag" }, optional ? t("task.optional") : "");
    this.help = el("p", { class: "dim help", id: `${id}-help` }, help);
    this.help.hidden = help === "";
    this.error = el("p", { class: "error", id: `${id}-error`, hidden: true });
    control.id = id;
    control.setAttribute("aria-describedby", `${id}-help ${id}-error`);
    this.root = el("div", { class: "field" }, el("div", { class: "label" }, this.label, this.tag), this.help, control, this.error);
    control.addEventListener("input", () => this.clear());
  }

  get value() {
    return this.control.value;
  }

  complain(sentence) {
    this.control.setAttribute("aria-invalid", "true");
    text(this.error, sentence);
    this.error.hidden = false;
  }

  clear() {
    this.control.removeAttribute("aria-invalid");
    this.error.hidden = true;
  }

  focus() {
    this.control.closest("details")?.setAttribute("open", "");
    this.control.focus();
  }
}

export function textArea(properties = {}) {
  const area = el("textarea", { rows: 2, spellcheck: false, ...properties });
  area.addEventListener("input", () => fit(area));
  return area;
}

// As high as its text, where the browser does not do that itself (CSS field-sizing).
export function fit(area) {
  if (CSS.supports("field-sizing", "content")) return;
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight + 2, 360)}px`;
}

const NUMBERS = [
  "max_tokens",
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "repetition_penalty",
  "presence_penalty",
  "frequency_penalty",
  "seed",
];

// The sampling parameters that /generate and /v1/chat/completions have in common.
export class Sampling {
  constructor() {
    this.fields = new Map();
    const grid = el("div", { class: "grid" });
    for (const name of NUMBERS) {
      // No type=number: it would swallow what is no number, and the server says better what is wrong with it.
      const control = el("input", { type: "text", inputMode: "decimal", autocomplete: "off" });
      this.#add(grid, name, control);
    }
    this.#add(grid, "stop", textArea({ rows: 1 }));
    this.title = el("summary");
    this.help = el("p", { class: "dim help" });
    this.root = el("details", { class: "sampling" }, this.title, this.help, grid);
    this.translate();
  }

  #add(grid, name, control) {
    const field = new Field({ name, control, label: "" });
    this.fields.set(name, field);
    grid.append(field.root);
  }

  translate() {
    text(this.title, t("sampling.title"));
    text(this.help, t("sampling.help"));
    for (const [name, field] of this.fields) text(field.label, t(`sampling.${name}`));
  }

  // What the server does when nothing is given, in the empty fields.
  showDefaults(defaults) {
    for (const [name, field] of this.fields) {
      const value = defaults?.[name];
      field.control.placeholder = value === undefined || value === null || String(value) === "" ? "" : String(value);
    }
  }

  values() {
    const given = {};
    for (const name of NUMBERS) {
      const written = this.fields.get(name).value.trim().replace(",", ".");
      if (written !== "") given[name] = Number.isFinite(Number(written)) ? Number(written) : written;
    }
    const stops = this.fields.get("stop").value.split("\n").filter((line) => line !== "");
    if (stops.length) given.stop = stops;
    return given;
  }
}

// Things to try, a button each; `use` gets the value of the one that was pressed.
export class Examples {
  constructor(use) {
    this.use = use;
    this.title = el("span", { class: "dim" });
    this.row = el("span", { class: "chips" });
    this.root = el("div", { class: "examples" }, this.title, this.row);
  }

  // `examples` are { name, value }.
  show(examples) {
    text(this.title, t("examples"));
    this.row.replaceChildren(
      ...examples.map(({ name, value }) => el("button", { type: "button", class: "chip", onclick: () => this.use(value) }, name)),
    );
  }
}

// An error of the API in words, beside the field that it names; the field gets the focus.
export class Complaint {
  constructor() {
    this.title = el("strong");
    this.message = el("p");
    this.hint = el("p");
    this.original = el("p", { class: "original", lang: "en" });
    const parts = [this.title, this.message, this.hint, this.original];
    this.root = el("div", { class: "alert", role: "alert", hidden: true }, ...parts);
  }

  // `at` is the field, where its name alone does not say it.
  show(error, fields, at = undefined) {
    const field = at ?? (error.field ? find(fields, error.field) : undefined);
    this.shown = { error, field };
    this.translate();
    this.root.hidden = false;
    field?.focus();
  }

  translate() {
    if (this.shown === undefined) return;
    const { error, field } = this.shown;
    text(this.title, error.title ?? t("error.500"));
    text(this.message, error.why || error.message);
    text(this.hint, error.hint ?? "");
    text(this.original, error.why ? error.message : "");
    field?.complain(error.why || error.message);
  }

  clear(fields) {
    this.root.hidden = true;
    this.shown = undefined;
    for (const field of fields) field.clear();
  }
}

// `images.0` and `inputs.schema` and `stop.1` name a part of what one field holds.
function find(fields, name) {
  return (
    fields.find((field) => field.name === name) ??
    fields.find((field) => name.startsWith(`${field.name}.`) || name === `${field.name}s` || `${name}s` === field.name)
  );
}
