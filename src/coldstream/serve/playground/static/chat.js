// A conversation with one of the models that have a chat template, over POST /v1/chat/completions.

import { Answer, fromChat } from "./answer.js";
import { Code } from "./code.js";
import { el, text } from "./dom.js";
import { Complaint, Field, Sampling, textArea } from "./form.js";
import { Photos } from "./photos.js";
import { inEveryLanguage, t } from "./words.js";

const MOST_PHOTOS = 8;

export class Chat {
  #turns = []; // { content, photos } of the user and { content } of the model, in turn
  #answer = null;
  #cards = [];

  constructor(box) {
    const redraw = () => this.code.draw();
    this.model = new Field({ name: "model", control: el("select"), label: "" });
    this.system = new Field({ name: "system", control: textArea({ rows: 1 }), label: "" });
    this.message = new Field({ name: "messages", control: textArea({ rows: 2 }), label: "" });
    this.photos = new Photos({ name: "image_url", most: MOST_PHOTOS, onchange: redraw });
    this.sampling = new Sampling();
    this.complaint = new Complaint();
    this.code = new Code(() => this.#request(true));
    this.log = el("div", { class: "log", role: "log", "aria-live": "off", tabIndex: 0 });
    this.button = el("button", { type: "submit", class: "primary" });
    this.again = el("button", { type: "button", onclick: () => this.#reset() });
    this.keys = el("kbd", { class: "dim" });
    this.attach = el("summary");
    this.empty = el("p", { class: "dim" });
    this.form = this.#layout();
    this.form.hidden = true;
    box.append(this.empty, this.form);
    inEveryLanguage(() => this.#translate());
  }

  #layout() {
    const options = el("div", { class: "grid two" }, this.model.root, this.system.root);
    const photos = el("details", { class: "attach" }, this.attach, this.photos.root);
    const actions = el("div", { class: "actions" }, this.button, this.again, this.keys);
    const form = el(
      "form",
      { noValidate: true },
      options,
      this.log,
      this.complaint.root,
      this.message.root,
      photos,
      actions,
      this.sampling.root,
      this.code.root,
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#press();
    });
    // While a syllable is being composed, Enter belongs to the input method (Korean, Japanese, Chinese).
    this.message.control.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (this.#answer === null) form.requestSubmit();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.#answer?.stop();
    });
    form.addEventListener("input", () => this.code.draw());
    this.photos.takeDrops(form);
    this.photos.onchange = () => {
      photos.open ||= this.photos.photos.length > 0;
      this.code.draw();
    };
    return form;
  }

  // `models` as GET /v1/models lists them, when some of them have become ready.
  show(models) {
    this.#cards = models.filter((card) => card.status === "ready" && card.chat && card.parent === undefined);
    const chosen = this.model.value;
    this.model.control.replaceChildren(...this.#cards.map((card) => el("option", { value: card.id }, card.id)));
    if (this.#cards.some((card) => card.id === chosen)) this.model.control.value = chosen;
    this.known = true;
    this.form.hidden = this.#cards.length === 0;
    this.#translate();
  }

  #translate() {
    for (const part of [this.sampling, this.code, this.photos]) part.translate();
    for (const turn of this.#turns) turn.answer?.translate();
    for (const name of this.log.querySelectorAll("h3.you")) text(name, t("chat.you"));
    text(this.model.label, t("chat.model"));
    text(this.system.label, t("chat.system"));
    text(this.message.label, t("chat.message"));
    text(this.attach, t("chat.attach"));
    text(this.again, t("chat.new"));
    text(this.keys, t("chat.keys"));
    text(this.empty, this.#cards.length ? "" : t(this.known ? "chat.none" : "chat.ready"));
    this.empty.hidden = this.#cards.length > 0;
    this.log.setAttribute("aria-label", t("chat.log"));
    this.#drawButton();
  }

  #drawButton() {
    text(this.button, t(this.#answer === null ? "chat.send" : "stop"));
    this.button.classList.toggle("running", this.#answer !== null);
  }

  get fields() {
    return [this.model, this.system, this.message, this.photos, ...this.sampling.fields.values()];
  }

  async #press() {
    if (this.#answer !== null) {
      this.#answer.stop();
      return;
    }
    if (this.message.value.trim() === "") {
      this.message.focus();
      return;
    }
    this.complaint.clear(this.fields);
    const { path, body } = this.#request(false);
    const options = { stream: true, stream_options: { include_usage: true } };
    const asked = { path, body: { ...body, ...options }, read: fromChat, model: this.model.value };
    const written = { content: this.message.value, photos: this.photos.photos };
    const shown = this.#showQuestion(written);
    this.message.control.value = "";
    this.photos.empty();
    try {
      await this.#ask(asked, written);
    } catch (error) {
      this.#takeBack(written, shown);
      this.complaint.show(error, this.fields, this.#fieldOf(error.field ?? ""));
    }
  }

  // `messages.0` may be the system message, and a message's photo is not its text.
  #fieldOf(name) {
    if (name.includes("image_url")) return this.photos;
    if (!name.startsWith("messages")) return undefined;
    return this.system.value.trim() && name.startsWith("messages.0") ? this.system : this.message;
  }

  async #ask(asked, written) {
    const answer = new Answer({ scroll: () => (this.log.scrollTop = this.log.scrollHeight) });
    const name = el("h3", {}, asked.model);
    this.log.append(el("article", { class: "turn" }, name, answer.root));
    const turns = this.#turns; // a new chat, begun meanwhile, has others
    this.#answer = answer;
    this.#drawButton();
    try {
      await answer.stream(asked);
      turns.push(written, { content: answer.words, answer });
    } catch (error) {
      name.parentElement.remove();
      throw error;
    } finally {
      this.#answer = null;
      this.#drawButton();
      this.code.draw();
    }
  }

  #showQuestion({ content, photos }) {
    const pictures = photos.map((photo) => el("img", { src: photo.url, alt: photo.name }));
    const words = el("div", { class: "words" }, content);
    const shown = el("article", { class: "turn mine" }, el("h3", { class: "you" }, t("chat.you")), ...pictures, words);
    this.log.append(shown);
    this.log.scrollTop = this.log.scrollHeight;
    return shown;
  }

  // A question that was refused goes back to where it was written, to be mended.
  #takeBack(written, shown) {
    shown.remove();
    if (this.message.value === "") this.message.control.value = written.content;
    this.photos.restore(written.photos);
  }

  #reset() {
    this.#answer?.stop();
    this.#turns = [];
    this.log.replaceChildren();
    this.complaint.clear(this.fields);
    this.message.focus();
    this.code.draw();
  }

  #request(forCode) {
    const messages = [];
    if (this.system.value.trim()) messages.push({ role: "system", content: this.system.value });
    for (const turn of this.#turns) {
      const role = turn.answer ? "assistant" : "user";
      messages.push({ role, content: content(turn, forCode) });
    }
    messages.push({ role: "user", content: content({ content: this.message.value, photos: this.photos.photos }, forCode) });
    return { path: "v1/chat/completions", body: { model: this.model.value, messages, ...this.sampling.values() } };
  }
}

function content({ content: words, photos = [] }, forCode) {
  if (!photos.length) return words;
  const parts = photos.map((photo) => ({ type: "image_url", image_url: { url: forCode ? photo : photo.url } }));
  return [...parts, { type: "text", text: words }];
}
