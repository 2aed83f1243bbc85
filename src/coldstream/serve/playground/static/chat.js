// A conversation with one of the models that have a chat template, over POST /v1/chat/completions.

import { Answer, fromChat } from "./answer.js";
import { Code } from "./code.js";
import { el, text } from "./dom.js";
import { Complaint, Examples, Field, Sampling, textArea } from "./form.js";
import { keep, kept } from "./kept.js";
import { Photo, Photos } from "./photos.js";
import { inEveryLanguage, t } from "./words.js";

const MOST_PHOTOS = 8;
const KEPT = "chat";
const EXAMPLES = [1, 2, 3];

export class Chat {
  #turns = []; // { content, photos, shown } of the user and { content, answer, model, shown } of the model, in turn
  #running = null; // { question, answer }
  #cards = [];
  #chosen = false;
  #leaving = false;

  constructor(box) {
    const redraw = () => this.code.draw();
    this.model = new Field({ name: "model", control: el("select"), label: "" });
    this.system = new Field({ name: "system", control: textArea({ rows: 1 }), label: "" });
    this.message = new Field({ name: "messages", control: textArea({ rows: 2 }), label: "" });
    this.photos = new Photos({ name: "image_url", most: MOST_PHOTOS, onchange: redraw });
    this.sampling = new Sampling();
    this.complaint = new Complaint();
    this.code = new Code(() => this.#request(true));
    this.examples = new Examples((words) => this.#try(words));
    this.log = el("div", { class: "log", role: "log", "aria-live": "off", tabIndex: 0 });
    this.button = el("button", { type: "submit", class: "primary" });
    this.again = el("button", { type: "button", onclick: () => void this.#regenerate() });
    this.fresh = el("button", { type: "button", onclick: () => this.#reset() });
    this.keys = el("kbd", { class: "dim" });
    this.attach = el("summary");
    this.empty = el("p", { class: "dim" });
    this.form = this.#layout();
    this.form.hidden = true;
    box.append(this.empty, this.form);
    this.#restore();
    inEveryLanguage(() => this.#translate());
    addEventListener("pagehide", () => this.#leave());
    addEventListener("pageshow", () => (this.#leaving = false));
  }

  #layout() {
    const photos = el("details", { class: "attach" }, this.attach, this.photos.root);
    const actions = el("div", { class: "actions" }, this.button, this.again, this.fresh, this.keys);
    const form = el(
      "form",
      { noValidate: true },
      this.log,
      this.complaint.root,
      this.message.root,
      this.examples.root,
      actions,
      el("div", { class: "grid two" }, this.model.root, this.system.root),
      photos,
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
      if (this.#running === null) form.requestSubmit();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.#running?.answer.stop();
    });
    form.addEventListener("input", () => this.code.draw());
    this.model.control.addEventListener("change", () => {
      this.#chosen = true;
      this.#keep();
    });
    this.system.control.addEventListener("change", () => this.#keep());
    this.photos.takeDrops(form);
    this.photos.onchange = () => {
      photos.open ||= this.photos.photos.length > 0;
      this.code.draw();
    };
    return form;
  }

  // `models` as GET /v1/models lists them, when some of them have become ready; `talker` is the model to begin with.
  show(models, talker = undefined) {
    this.#cards = models.filter((card) => card.status === "ready" && card.chat && card.parent === undefined);
    const chosen = this.#chosen ? (this.model.value || this.wanted) : talker;
    this.model.control.replaceChildren(...this.#cards.map((card) => el("option", { value: card.id }, card.id)));
    if (this.#cards.some((card) => card.id === chosen)) this.model.control.value = chosen;
    this.known = true;
    this.form.hidden = this.#cards.length === 0;
    this.#translate();
  }

  #translate() {
    for (const part of [this.sampling, this.code, this.photos, this.complaint]) part.translate();
    for (const turn of this.#turns) turn.answer?.translate();
    for (const name of this.log.querySelectorAll("h3.you")) text(name, t("chat.you"));
    this.examples.show(EXAMPLES.map((place) => t(`chat.example.${place}`)).map((words) => ({ name: words, value: words })));
    text(this.model.label, t("chat.model"));
    text(this.system.label, t("chat.system"));
    text(this.message.label, t("chat.message"));
    text(this.attach, t("chat.attach"));
    text(this.again, t("chat.again"));
    text(this.fresh, t("chat.new"));
    text(this.keys, t("chat.keys"));
    text(this.empty, this.#cards.length ? "" : t(this.known ? "chat.none" : "chat.ready"));
    this.empty.hidden = this.#cards.length > 0;
    this.log.setAttribute("aria-label", t("chat.log"));
    this.#draw();
  }

  #draw() {
    const runs = this.#running !== null;
    text(this.button, t(runs ? "stop" : "chat.send"));
    this.button.classList.toggle("running", runs);
    this.again.hidden = runs || this.#turns.length === 0;
    this.fresh.hidden = !runs && this.#turns.length === 0;
    this.examples.root.hidden = runs || this.#turns.length > 0;
    this.code.draw();
  }

  get fields() {
    return [this.model, this.system, this.message, this.photos, ...this.sampling.fields.values()];
  }

  #try(words) {
    this.message.control.value = words;
    void this.#press();
  }

  async #press() {
    if (this.#running !== null) {
      this.#running.answer.stop();
      return;
    }
    if (this.message.value.trim() === "") {
      this.message.focus();
      return;
    }
    this.complaint.clear(this.fields);
    const question = this.#shownQuestion({ content: this.message.value, photos: this.photos.photos });
    this.message.control.value = "";
    this.photos.empty();
    try {
      await this.#ask(question);
    } catch (error) {
      this.#takeBack(question);
      this.#complain(error);
    }
  }

  // The last question once more; the answer that it had comes back where there is no other.
  async #regenerate() {
    const turns = this.#turns;
    const [question, before] = turns.splice(-2);
    before.shown.remove();
    this.complaint.clear(this.fields);
    try {
      await this.#ask(question);
    } catch (error) {
      turns.push(question, before);
      if (turns === this.#turns) this.log.append(before.shown);
      this.#complain(error);
      this.#keep();
      this.#draw();
    }
  }

  async #ask(question) {
    const { path, body } = this.#request(false, question);
    const options = { stream: true, stream_options: { include_usage: true } };
    const asked = { path, body: { ...body, ...options }, read: fromChat, model: this.model.value };
    const said = this.#shownAnswer(asked.model);
    const turns = this.#turns; // a new chat, begun meanwhile, has others
    this.#running = { question, ...said };
    this.#draw();
    this.button.focus({ preventScroll: true });
    try {
      await said.answer.stream(asked);
      turns.push(question, said);
    } catch (error) {
      said.shown.remove();
      throw error;
    } finally {
      this.#running = null;
      this.#keep();
      this.#draw();
    }
  }

  #shownQuestion({ content, photos }) {
    const pictures = photos.map((photo) =>
      photo.url ? el("img", { src: photo.url, alt: photo.name }) : el("p", { class: "dim" }, t("photo.lost", { name: photo.name })),
    );
    const words = el("div", { class: "words" }, content);
    const shown = el("article", { class: "turn mine" }, el("h3", { class: "you" }, t("chat.you")), ...pictures, words);
    this.log.append(shown);
    this.#scroll();
    return { content, photos, shown };
  }

  #shownAnswer(model) {
    const answer = new Answer({ scroll: () => this.#scroll(), form: "markdown" });
    const shown = el("article", { class: "turn" }, el("h3", {}, model), answer.root);
    this.log.append(shown);
    return { answer, model, shown };
  }

  #scroll() {
    this.log.scrollTop = this.log.scrollHeight;
  }

  // `messages.0` may be the system message, and a message's photo is not its text.
  #complain(error) {
    const name = error.field ?? "";
    const inMessages = this.system.value.trim() && name.startsWith("messages.0") ? this.system : this.message;
    const at = name.includes("image_url") ? this.photos : name.startsWith("messages") ? inMessages : undefined;
    this.complaint.show(error, this.fields, at);
  }

  // A question that was refused goes back to where it was written, to be mended.
  #takeBack({ content, photos, shown }) {
    shown.remove();
    if (this.message.value === "") this.message.control.value = content;
    this.photos.restore(photos);
  }

  #reset() {
    this.#running?.answer.stop();
    this.#turns = [];
    this.log.replaceChildren();
    this.complaint.clear(this.fields);
    this.message.focus();
    this.#keep();
    this.#draw();
  }

  #leave() {
    this.#keep();
    this.#leaving = true; // what the page's end breaks off is no reason to forget it
  }

  #keep() {
    if (this.#leaving) return;
    const running = this.#running ? [this.#running.question, { ...this.#running, cut: true }] : [];
    const turns = [...this.#turns, ...running].map(({ content, photos, answer, model, cut }) =>
      answer ? { model, words: answer.words, finish: cut ? "reload" : answer.finish } : { content, photos },
    );
    const whole = { model: this.#chosen ? this.model.value || this.wanted : null, system: this.system.value, turns };
    if (keep(KEPT, whole)) return;
    // A browser keeps some megabytes: photos are what there is too much of.
    const named = turns.map((turn) => (turn.photos ? { ...turn, photos: turn.photos.map(({ name }) => ({ name })) } : turn));
    keep(KEPT, { ...whole, turns: named });
  }

  #restore() {
    const found = kept(KEPT);
    if (found === null) return;
    this.wanted = found.model;
    this.#chosen = found.model !== null;
    this.system.control.value = found.system;
    for (const turn of found.turns) {
      if (turn.photos) {
        this.#turns.push(this.#shownQuestion({ content: turn.content, photos: turn.photos.map((photo) => new Photo(photo, photo.url)) }));
      } else {
        const said = this.#shownAnswer(turn.model);
        said.answer.restore(turn);
        this.#turns.push(said);
      }
    }
  }

  #request(forCode, question = { content: this.message.value, photos: this.photos.photos }) {
    const messages = [];
    if (this.system.value.trim()) messages.push({ role: "system", content: this.system.value });
    for (const turn of [...this.#turns, question]) {
      if (turn.answer) messages.push({ role: "assistant", content: turn.answer.words });
      else messages.push({ role: "user", content: content(turn, forCode) });
    }
    return { path: "v1/chat/completions", body: { model: this.model.value, messages, ...this.sampling.values() } };
  }
}

// A photo that was too large to be kept over a reload is no longer sent; where it stood says so.
function content({ content: words, photos }, forCode) {
  const there = photos.filter((photo) => photo.url);
  if (!there.length) return words;
  const parts = there.map((photo) => ({ type: "image_url", image_url: { url: forCode ? photo : photo.url } }));
  return [...parts, { type: "text", text: words }];
}
