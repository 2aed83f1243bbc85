// An answer while it streams: its text, time to first token, tokens a second, how it ended.

import { ApiError, call, events } from "./api.js";
import { el, say, text, toClipboard } from "./dom.js";
import { left, number, seconds, t } from "./words.js";
import { modelState } from "./start.js";

// A stream of POST /generate: {"text": ...}, the last one with finish_reason, usage, model, inputs_defaulted.
export function fromGenerate(event) {
  return { text: event.text, finish: event.finish_reason, usage: event.usage, defaulted: event.inputs_defaulted };
}

// A stream of POST /v1/chat/completions; with stream_options.include_usage the last chunk has the usage and no choice.
export function fromChat(event) {
  const [choice] = event.choices;
  const cached = event.usage?.prompt_tokens_details?.cached_tokens;
  const usage = event.usage ? { ...event.usage, cached_tokens: cached } : undefined;
  return { text: choice?.delta.content ?? "", finish: choice?.finish_reason ?? undefined, usage };
}

export class Answer {
  #written = "";
  #line = null;
  #waiting = "";
  #frame = 0;
  #abort = null;

  // `scroll` is called after text was added, for a box that keeps its end in view.
  constructor({ scroll = () => {} } = {}) {
    this.scroll = scroll;
    this.output = el("div", { class: "words" });
    this.note = el("p", { class: "dim note" });
    this.figures = el("ul", { class: "figures-line" });
    this.copy = el("button", { type: "button", class: "link", hidden: true, onclick: () => void this.#copy() });
    this.foot = el("div", { class: "foot" }, this.figures, this.copy);
    this.root = el("div", { class: "answer" }, this.output, this.note, this.foot);
    this.#clear();
    this.started = null;
  }

  get words() {
    return this.#written + this.#waiting;
  }

  get running() {
    return this.#abort !== null;
  }

  stop() {
    this.#abort?.abort();
  }

  // Streams one answer, to its end or until `stop`.
  // Throws ApiError: what the server said; the text that came before it stays.
  async stream({ path, body, read, model }) {
    this.#clear();
    this.#abort = new AbortController();
    this.root.setAttribute("aria-busy", "true");
    const note = setInterval(() => this.#tellWait(model), 500);
    this.#tellWait(model);
    try {
      const accept = "text/event-stream";
      await this.#follow(await call(path, { body, accept, signal: this.#abort.signal }), read);
    } catch (error) {
      if (error.name !== "AbortError") throw error instanceof ApiError ? error : broken(error);
      this.finish = "you";
    } finally {
      clearInterval(note);
      this.#abort = null;
      this.root.removeAttribute("aria-busy");
      this.#end();
    }
  }

  async #follow(response, read) {
    for await (const event of events(response)) {
      if (event.error !== undefined) throw ApiError.fromBody(event.error, event.error.type === "DeadlineExceeded" ? 504 : 500);
      const piece = read(event);
      if (piece.text) this.#add(piece.text);
      this.finish = piece.finish ?? this.finish;
      this.usage = piece.usage ?? this.usage;
      this.defaulted = piece.defaulted ?? this.defaulted;
    }
    // A stream that was cut off ends without a reason; one that was finished has said why.
    if (this.finish === null) throw broken(new Error());
  }

  #clear() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#waiting = "";
    this.#written = "";
    this.#line = null;
    this.output.replaceChildren();
    this.started = performance.now();
    this.first = this.last = null;
    this.pieces = 0;
    this.finish = this.usage = null;
    this.defaulted = [];
    this.copy.hidden = true;
    this.figures.replaceChildren();
    text(this.note, "");
  }

  // Tokens come faster than the screen is drawn: they are put in once a frame.
  #add(piece) {
    this.last = performance.now();
    this.first ??= this.last;
    this.pieces += 1;
    this.#waiting += piece;
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#frame = 0;
    for (const piece of this.#waiting.split(/(?<=\n)/)) this.#write(piece);
    this.#waiting = "";
    text(this.note, "");
    this.#drawFigures();
    this.scroll();
  }

  // A block for each line: what is added to a long answer then costs the layout of its last line only.
  #write(piece) {
    if (piece === "") return;
    if (this.#line === null || this.#line.data.endsWith("\n")) {
      this.#line = document.createTextNode("");
      this.output.lastElementChild?.classList.remove("last");
      this.output.append(el("div", { class: "last" }, this.#line));
    }
    this.#line.appendData(piece);
    this.#written += piece;
  }

  #tellWait(model) {
    if (this.first !== null) return;
    const state = modelState(model);
    const loading = state !== null && state.phase !== "ready" && state.phase !== "failed";
    text(this.note, loading ? t("answer.loading", { left: left(state.seconds_left) }) : t("answer.waiting"));
  }

  #end() {
    cancelAnimationFrame(this.#frame);
    this.#draw();
    this.copy.hidden = this.words === "";
    this.translate();
    if (this.finish === "you") say(t("answer.stopped"));
    else if (this.finish) say(t("answer.said", { tokens: number(this.tokens), rate: this.#rate() }));
  }

  translate() {
    text(this.copy, t("copy.text"));
    const notes = [];
    if (this.finish && this.finish !== "you" && this.words === "") notes.push(t("answer.nothing"));
    if (this.defaulted.length) notes.push(t("answer.defaulted", { names: this.defaulted.join(", ") }));
    if (this.started === null) notes.push(t("answer.empty"));
    if (!this.running) text(this.note, notes.join(" "));
    this.#drawFigures();
  }

  // While it streams, one piece counts as one token; the server's own count comes with the last event.
  get tokens() {
    return this.usage?.completion_tokens ?? this.pieces;
  }

  #rate() {
    const time = (this.last - this.first) / 1000;
    return this.tokens > 1 && time > 0 ? number((this.tokens - 1) / time, 1) : "–";
  }

  #drawFigures() {
    if (this.first === null && !this.finish) return;
    const lines = [];
    if (this.first !== null) {
      lines.push([seconds((this.first - this.started) / 1000), t("answer.first")]);
      lines.push([this.#rate(), t("answer.rate")]);
    }
    lines.push([number(this.tokens), t("answer.tokens")]);
    if (this.usage) {
      const cached = this.usage.cached_tokens ? ` (${t("answer.cached", { count: number(this.usage.cached_tokens) })})` : "";
      lines.push([number(this.usage.prompt_tokens), t("answer.prompt") + cached]);
    }
    if (this.finish) lines.push(["", t(`answer.end.${this.finish}`)]);
    this.#fill(lines);
  }

  #fill(lines) {
    while (this.figures.children.length > lines.length) this.figures.lastElementChild.remove();
    for (const [index, [value, name]] of lines.entries()) {
      const item = this.figures.children[index] ?? this.figures.appendChild(el("li", {}, el("b"), el("span")));
      text(item.firstElementChild, value);
      text(item.lastElementChild, name);
    }
  }

  async #copy() {
    await toClipboard(this.words);
    text(this.copy, t("copied"));
    setTimeout(() => text(this.copy, t("copy.text")), 1500);
  }
}

const broken = (error) => new ApiError({ status: "stream", message: error.message });
