// An answer while it streams: its text, time to first token, tokens a second, how it ended.

import { ApiError, call, events } from "./api.js";
import { el, say, text, toClipboard } from "./dom.js";
import { left, number, seconds, t } from "./words.js";
import { Formatted, isPlain } from "./markdown.js";
import { modelState } from "./start.js";

const SHORTEST = 250; // milliseconds of an answer from which the page tells a rate of its own
const SLOWEST = 20; // formatting takes at most one part in so many of the time

// A stream of POST /generate: {"text": ...}, the last one with finish_reason, usage, model, inputs_defaulted.
export function fromGenerate(event) {
  const { text: words, finish_reason: finish, usage, timings, inputs_defaulted: defaulted } = event;
  return { text: words, finish, usage, timings, defaulted };
}

// A stream of POST /v1/chat/completions; with stream_options.include_usage the last chunk has the usage and no choice.
export function fromChat(event) {
  const [choice] = event.choices;
  const cached = event.usage?.prompt_tokens_details?.cached_tokens;
  const usage = event.usage ? { ...event.usage, cached_tokens: cached } : undefined;
  return { text: choice?.delta.content ?? "", finish: choice?.finish_reason ?? undefined, usage, timings: event.timings };
}

export class Answer {
  #written = "";
  #line = null;
  #waiting = "";
  #frame = 0;
  #abort = null;

  // `scroll` is called after text was added, for a box that keeps its end in view. `form` is "text" or "markdown".
  constructor({ scroll = () => {}, form = "text" } = {}) {
    this.scroll = scroll;
    this.form = form;
    this.output = el("div", { class: "words" });
    this.formatted = new Formatted(this.output);
    this.note = el("p", { class: "dim note" });
    this.figures = el("ul", { class: "figures-line" });
    this.copy = el("button", { type: "button", class: "link", hidden: true, onclick: () => void this.#copy() });
    this.other = el("button", { type: "button", class: "link", hidden: true, onclick: () => this.#turnOver() });
    this.foot = el("div", { class: "foot" }, this.figures, this.copy, this.other);
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

  // An answer that was kept over a reload: its words and how it ended; its figures were not kept.
  restore({ words, finish }) {
    this.#waiting = words;
    this.finish = finish;
    this.started = 0;
    this.#settle();
  }

  async #follow(response, read) {
    for await (const event of events(response)) {
      if (event.error !== undefined) throw ApiError.fromBody(event.error, event.error.type === "DeadlineExceeded" ? 504 : 500);
      const piece = read(event);
      if (piece.text) this.#add(piece.text);
      this.finish = piece.finish ?? this.finish;
      this.usage = piece.usage ?? this.usage;
      this.timings = piece.timings ?? this.timings;
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
    this.formatted.clear();
    this.started = performance.now();
    this.first = this.last = null;
    this.pieces = 0;
    this.finish = this.usage = this.timings = null;
    this.defaulted = [];
    this.pause = 0;
    this.copy.hidden = this.other.hidden = true;
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
    if (performance.now() < this.pause) {
      this.#frame = requestAnimationFrame(() => this.#draw());
      return;
    }
    this.#show(this.#waiting);
    text(this.note, "");
    this.#drawFigures();
    this.scroll();
  }

  // What came since the last time. Formatting reads the whole answer again: it does so less often, the longer that takes.
  #show(piece, { whole = false } = {}) {
    const before = performance.now();
    const all = this.words;
    this.#waiting = "";
    if (this.form === "markdown" && this.formatted.draw(all, { whole })) {
      this.#written = all;
      this.pause = before + SLOWEST * (performance.now() - before);
    } else if (piece !== "") for (const line of piece.split(/(?<=\n)/)) this.#write(line);
    this.output.classList.toggle("formatted", this.form === "markdown");
  }

  // As it was written, or formatted.
  #turnOver() {
    this.form = this.form === "markdown" ? "text" : "markdown";
    this.#redraw();
    this.translate();
  }

  #redraw() {
    const all = this.words;
    this.formatted.clear();
    this.#line = null;
    this.#written = "";
    this.#waiting = all;
    this.#show(all, { whole: true });
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
    this.#settle();
    if (this.finish === "you") say(t("answer.stopped"));
    else if (this.finish) say(t("answer.said", { tokens: number(this.tokens), rate: this.#rate() }));
  }

  #settle() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    text(this.note, "");
    this.#redraw(); // as a whole: what came late may have changed what stood before it
    this.scroll();
    this.copy.hidden = this.words === "";
    this.other.hidden = isPlain(this.words);
    this.translate();
  }

  translate() {
    text(this.copy, t("copy.text"));
    text(this.other, t(this.form === "markdown" ? "answer.as.written" : "answer.as.formatted"));
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

  // The engine's own rate once it is told; until then the page's, as soon as it means something: what the engine drew
  // within a second may arrive within a millisecond.
  #rate() {
    if (this.timings) return this.tokens > 1 && this.timings.tokens_per_second ? number(this.timings.tokens_per_second, 1) : "–";
    const time = this.last - this.first;
    return this.tokens > 1 && time >= SHORTEST ? number(((this.tokens - 1) * 1000) / time, 1) : "–";
  }

  #drawFigures() {
    if (this.first === null && !this.finish) return;
    const lines = [];
    if (this.first !== null) {
      lines.push([seconds((this.first - this.started) / 1000), t("answer.first")]);
      lines.push([this.#rate(), t("answer.rate")]);
    }
    if (this.usage || this.pieces) lines.push([number(this.tokens), t("answer.tokens")]);
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
