// The load as it happens, from GET /startup, and what became of it.

import { ApiError, answersAt, call, events, getJson, onKeyNeeded } from "./api.js";
import { $, el, say, svg, text } from "./dom.js";
import { why } from "./errors.js";
import { bytes, inEveryLanguage, left, seconds, t } from "./words.js";
import { drawWaterfall } from "./waterfall.js";

const PAUSE = 1000; // milliseconds between two tries, and between two looks at the timeline
const PULSE = 200; // milliseconds between two looks whether the server lives, and
const SILENCE = 700; // how long such a look may take: together within a second
const WIDE = 560; // pixels: on a phone the waterfall stays folded while the load goes on
const cards = new Map();
const listeners = new Set();
let state = null;
let timeline = [];
let trouble = null; // "gone" or "locked"

// Calls back with each state of the load, and with the last one at once.
export function onState(listener) {
  listeners.add(listener);
  if (state !== null) listener(state);
}

export const modelState = (name) => state?.models[name] ?? null;

// Follows the load, then looks whether the server lives; the promise is kept when the server first answered.
export function follow() {
  $("waterfall").addEventListener("toggle", redraw);
  inEveryLanguage(redraw);
  return new Promise((answered) => void followForEver(answered));
}

async function followForEver(answered) {
  for (;;) {
    try {
      const response = await call("startup", { accept: "text/event-stream" });
      answered();
      const watching = setInterval(() => void refreshTimeline(), PAUSE);
      try {
        for await (const event of events(response)) show(event);
      } finally {
        clearInterval(watching);
      }
      await refreshTimeline();
      if (state.status !== "loading") await silence();
    } catch (error) {
      await showTrouble(error);
    }
  }
}

// Ends, with an error, when the server no longer answers. A page that is not looked at asks nothing.
async function silence() {
  for (;;) {
    await pause(PULSE);
    if (!document.hidden && !(await answersAt("healthz", SILENCE))) throw new ApiError({ status: 0, message: "" });
  }
}

async function refreshTimeline() {
  try {
    const whole = await getJson("startup");
    timeline = whole.timeline;
    show(whole);
  } catch {
    // the stream of events, which runs beside this, says what is wrong
  }
}

async function showTrouble(error) {
  const locked = error instanceof ApiError && error.status === 401;
  trouble = locked ? "locked" : "gone";
  redraw();
  await (locked ? new Promise((resume) => onKeyNeeded((given) => given && resume())) : pause());
}

const pause = (time = PAUSE) => new Promise((resolve) => setTimeout(resolve, time));

function show(now) {
  const before = state;
  state = now;
  trouble = null;
  if (before === null && now.status === "loading") $("waterfall").open = innerWidth > WIDE;
  if (before?.status !== now.status) {
    say(t(`status.${now.status}`));
    // What is over is one line; what goes on, or went wrong, is seen first.
    $("start").open = now.status !== "ready";
    if (now.status !== "loading") $("waterfall").open = false;
    document.querySelector("main").dataset.status = now.status;
  }
  redraw();
  for (const listener of listeners) listener(now);
}

function redraw() {
  drawStatus();
  if (state === null) return;
  for (const [name, model] of Object.entries(state.models)) drawModel(name, model);
  if ($("waterfall").open && timeline.length) drawWaterfall($("waterfall-body"), timeline);
}

function drawStatus() {
  const status = trouble ?? state?.status ?? "connecting";
  $("status").dataset.status = status;
  text($("status").firstElementChild, t(`status.${status}`));
  text($("start-line"), startLine());
  document.title = status === "loading" && state.total_bytes
    ? `${Math.floor((100 * state.bytes) / state.total_bytes)} % · Coldstream`
    : "Coldstream";
}

function startLine() {
  if (trouble !== null) return t(`start.${trouble}`);
  if (state === null) return "";
  if (state.status === "loading") {
    if (!state.total_bytes) return t("start.beginning");
    const done = { done: bytes(state.bytes), total: bytes(state.total_bytes) };
    return t("start.loading", { ...done, rate: bytes(state.rate), left: left(state.seconds_left) });
  }
  const ready = timeline.filter((span) => span.start === span.end && span.name.endsWith(" ready"));
  if (!ready.length) return "";
  const last = Math.max(...ready.map((span) => span.start));
  return t("start.ready", { seconds: seconds(last), total: bytes(state.total_bytes) });
}

function drawModel(name, model) {
  if (!cards.has(name)) cards.set(name, makeCard(name));
  const card = cards.get(name);
  const fraction = model.phase === "ready" ? 1 : model.total_bytes ? model.bytes / model.total_bytes : 0;
  card.root.dataset.phase = model.phase;
  text(card.phase, t(`phase.${model.phase}`));
  card.fill.style.transform = `scaleX(${fraction})`;
  const value = String(Math.floor(fraction * 100));
  if (card.bar.getAttribute("aria-valuenow") !== value) card.bar.setAttribute("aria-valuenow", value);
  card.bar.setAttribute("aria-label", t("model.progress", { model: name, phase: t(`phase.${model.phase}`) }));
  text(card.figures, figures(model).join(" · "));
  text(card.notes, notes(model).join(" · "));
  card.spark.toggleAttribute("hidden", model.phase !== "streaming");
  if (model.phase === "streaming") card.rates.draw(model.bytes);
  card.error.hidden = model.error === undefined;
  if (model.error) {
    text(card.error.firstElementChild, t("model.failed"));
    text(card.error.children[1], why(model.error));
    text(card.error.lastElementChild, `${model.error.type}: ${model.error.message}`);
  }
}

function makeCard(name) {
  const fill = el("div", { class: "fill" });
  const bar = el("div", { class: "bar", role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100" }, fill);
  const phase = el("span", { class: "phase" });
  const figuresLine = el("span", { class: "figures" });
  const line = svg("polyline", { points: "", fill: "none" });
  const spark = svg("svg", { viewBox: "0 0 100 24", preserveAspectRatio: "none", class: "spark", "aria-hidden": "true" }, line);
  const notesLine = el("p", { class: "dim notes" });
  const error = el("div", { class: "alert", hidden: true }, el("strong"), el("p"), el("p", { class: "original", lang: "en" }));
  const head = el("div", { class: "model-head" }, el("strong", {}, name), phase, spark, figuresLine);
  const root = el("article", { class: "model", "aria-label": name }, head, bar, notesLine, error);
  $("models").append(root);
  return { root, fill, bar, phase, figures: figuresLine, spark, rates: new Rates(line), notes: notesLine, error };
}

function figures(model) {
  if (!model.total_bytes) return [];
  if (model.phase === "ready") return [t("model.loaded", { total: bytes(model.total_bytes), rate: bytes(model.rate) })];
  const parts = [t("model.bytes", { done: bytes(model.bytes), total: bytes(model.total_bytes) })];
  if (model.phase === "failed") return parts;
  parts.push(t("model.rate", { rate: bytes(model.rate) }), t("model.left", { left: left(model.seconds_left) }));
  return parts;
}

function notes(model) {
  const parts = [];
  if (model.retries || model.resumes || model.hedges) parts.push(t("model.again", model));
  if (model.unverified.length) parts.push(t("model.unverified", { files: model.unverified.join(", ") }));
  return parts;
}

// A line of the rate over the last looks at it; the figure beside it is the mean since the first byte.
class Rates {
  #line;
  #samples = [];
  #last = null;

  constructor(line) {
    this.#line = line;
  }

  draw(landed) {
    const now = performance.now();
    if (this.#last !== null) {
      if (now - this.#last.now < 150) return;
      this.#samples.push(Math.max(0, landed - this.#last.landed) / (now - this.#last.now));
      this.#samples = this.#samples.slice(-60);
    }
    this.#last = { now, landed };
    const most = Math.max(...this.#samples, 1e-9);
    const step = 100 / Math.max(this.#samples.length - 1, 1);
    const points = this.#samples.map((rate, index) => `${(index * step).toFixed(1)},${(22 - (20 * rate) / most).toFixed(1)}`);
    this.#line.setAttribute("points", points.join(" "));
  }
}
