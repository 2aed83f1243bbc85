// The tasks: a form drawn from each one's JSON Schema, its answer, and the same request as code.

import { Answer, fromGenerate } from "./answer.js";
import { Code } from "./code.js";
import { el, text } from "./dom.js";
import { Complaint, Examples, Field, Sampling, textArea } from "./form.js";
import { Photos } from "./photos.js";
import { current, inEveryLanguage, t } from "./words.js";

export class Tasks {
  #box;
  #forms = new Map();
  #chosen = null;

  constructor(box) {
    this.#box = box;
    this.empty = el("p", { class: "dim" });
    box.append(this.empty);
    inEveryLanguage(() => this.#translate());
  }

  // `tasks` as GET /v1/tasks lists them.
  show(tasks) {
    for (const task of tasks) this.#forms.set(task.type, new TaskForm(task));
    this.legend = el("legend");
    const choices = tasks.map((task, index) => this.#choice(task, index));
    this.place = el("div");
    this.#box.replaceChildren(el("fieldset", { class: "choices" }, this.legend, ...choices), this.place);
    if (tasks.length) this.#choose(tasks[0].type);
    this.#translate();
  }

  #choice(task, index) {
    const input = el("input", { type: "radio", name: "task", value: task.type, checked: index === 0 });
    input.addEventListener("change", () => this.#choose(task.type));
    return el("label", {}, input, el("span", {}, task.type));
  }

  #choose(type) {
    this.#chosen = this.#forms.get(type);
    this.place.replaceChildren(this.#chosen.root);
  }

  #translate() {
    text(this.empty, t("task.none"));
    if (this.legend) text(this.legend, t("task.pick"));
    for (const form of this.#forms.values()) form.translate();
  }
}

class TaskForm {
  constructor(task) {
    this.task = task;
    const inputs = Object.entries(task.inputs.properties);
    const isPrompt = ([name]) => name === task.prompt_input;
    this.inputs = [...inputs.filter(isPrompt), ...inputs.filter((input) => !isPrompt(input))].map((input) => this.#input(...input));
    this.examples = new Examples((values) => this.#try(values));
    this.examples.show(task.examples.map(({ name, inputs: value }) => ({ name, value })));
    this.examples.root.hidden = task.examples.length === 0;
    this.photos = task.images > 0 ? new Photos({ name: "images", most: task.images, onchange: () => this.code.draw() }) : null;
    this.sampling = new Sampling();
    this.sampling.showDefaults(task.sampling);
    this.complaint = new Complaint();
    this.answer = new Answer({ form: task.answer });
    this.code = new Code(() => this.#request(true));
    this.button = el("button", { type: "submit", class: "primary" });
    this.keys = el("kbd", { class: "dim" });
    this.model = el("span", { class: "dim" });
    this.help = el("span");
    this.title = el("h3");
    this.root = this.#layout();
    this.translate();
  }

  #layout() {
    const form = el(
      "form",
      { noValidate: true },
      ...this.inputs.map((input) => input.root),
      this.photos?.root ?? null,
      el("div", { class: "actions" }, this.button, this.keys),
      this.examples.root,
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#press();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !this.answer.running) form.requestSubmit();
      if (event.key === "Escape") this.answer.stop();
    });
    form.addEventListener("input", () => this.code.draw());
    const [place] = [...this.inputs.filter((input) => input instanceof Photos), ...(this.photos ? [this.photos] : [])];
    place?.takeDrops(form);
    const about = el("p", { class: "about" }, this.help, " ", this.model);
    const result = el("div", { class: "result" }, this.title, this.complaint.root, this.answer.root);
    this.sampling.root.addEventListener("input", () => this.code.draw());
    return el("div", {}, about, form, result, this.sampling.root, this.code.root);
  }

  #input(name, schema) {
    const sentAs = name === this.task.prompt_input ? "prompt" : `inputs.${name}`;
    if (schema.contentMediaType?.startsWith("image/")) {
      const path = `v1/tasks/${encodeURIComponent(this.task.type)}/inputs/${encodeURIComponent(name)}`;
      const sample = schema["x-has-default"] === true ? path : "";
      const onchange = () => this.code.draw();
      const photos = new Photos({ name: sentAs, most: 1, label: name, help: schema.description, sample, onchange });
      return Object.assign(photos, { schema, input: name });
    }
    const required = this.task.inputs.required.includes(name);
    const control = schema.enum ? choices(schema) : textArea({ rows: name === this.task.prompt_input ? 2 : 3 });
    control.setAttribute("aria-required", String(required));
    const field = new Field({ name: sentAs, control, label: name, help: schema.description, optional: !required });
    field.standard = schema.default;
    return Object.assign(field, { schema, input: name });
  }

  get fields() {
    return [...this.inputs, ...(this.photos ? [this.photos] : []), ...this.sampling.fields.values()];
  }

  translate() {
    this.sampling.translate();
    this.answer.translate();
    this.code.translate();
    this.photos?.translate();
    this.complaint.translate();
    text(this.help, spoken(this.task.help, this.task.help_in));
    for (const input of this.inputs) {
      text(input.help, spoken(input.schema.description ?? "", input.schema["x-description-in"]));
      if (input instanceof Photos) input.translate();
      else translateInput(input);
    }
    text(this.model, t("task.model", { model: this.task.model }));
    text(this.title, t("answer.title"));
    text(this.keys, t("run.keys"));
    this.#drawButton();
  }

  // An example is asked as it is, whatever was written before.
  #try(values) {
    if (this.answer.running) return;
    for (const input of this.inputs) {
      if (!(input instanceof Photos)) setValue(input.control, values[input.input] ?? "");
    }
    this.code.draw();
    void this.#press();
  }

  #drawButton() {
    text(this.button, t(this.answer.running ? "stop" : "run"));
    this.button.classList.toggle("running", this.answer.running);
  }

  // One button that asks and stops: it keeps the focus while its meaning changes.
  async #press() {
    if (this.answer.running) {
      this.answer.stop();
      return;
    }
    this.complaint.clear(this.fields);
    const { path, body } = this.#request(false);
    const asked = { path, body: { ...body, stream: true, details: true }, read: fromGenerate, model: this.task.model };
    const answered = this.answer.stream(asked);
    this.#drawButton();
    try {
      await answered;
    } catch (error) {
      this.complaint.show(error, this.fields);
    } finally {
      this.#drawButton();
    }
  }

  // The request; for code, photos are named rather than spelled out.
  #request(forCode) {
    const body = { type: this.task.type };
    const inputs = {};
    for (const input of this.inputs) {
      const value = valueOf(input, forCode);
      if (value === "") continue; // what is empty takes its default, or the server says that it is missing
      if (input.name === "prompt") body.prompt = value;
      else inputs[input.name.slice("inputs.".length)] = value;
    }
    if (Object.keys(inputs).length) body.inputs = inputs;
    if (this.photos?.photos.length) body.images = this.photos.photos.map((photo) => (forCode ? photo : photo.url));
    return { path: "generate", body: { ...body, ...this.sampling.values() } };
  }
}

// A help in the reader's language, where the task has it.
const spoken = (english, others) => others?.[current()] ?? english;

function setValue(control, value) {
  control.value = value;
  control.dispatchEvent(new Event("input", { bubbles: true }));
}

function valueOf(input, forCode) {
  if (!(input instanceof Photos)) return input.value;
  const [photo] = input.photos;
  if (photo === undefined) return "";
  return forCode ? photo : photo.url;
}

function choices(schema) {
  const standard = el("option", { value: "" });
  return el("select", {}, standard, ...schema.enum.map((value) => el("option", { value }, value)));
}

function translateInput(field) {
  const { control, standard } = field;
  if (control instanceof HTMLSelectElement) {
    text(control.options[0], standard === undefined ? t("task.choose") : t("task.standard", { value: standard }));
  } else if (standard !== undefined) {
    control.placeholder = t("task.default", { value: standard });
  }
  text(field.tag, control.getAttribute("aria-required") === "true" ? "" : t("task.optional"));
}
