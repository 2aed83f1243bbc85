// What each engine is doing, from GET /metrics, once a second while the panel is open and looked at.

import { call } from "./api.js";
import { $, el, svg, text } from "./dom.js";
import { inEveryLanguage, number, percent, seconds, t } from "./words.js";

const PERIOD = 1000; // milliseconds
const boxes = new Map();
let last = new Map();
let timer = null;

export function watchEngines() {
  if (timer !== null) return;
  timer = setInterval(() => void look(), PERIOD);
  $("engine").addEventListener("toggle", () => void look());
  inEveryLanguage(draw);
  void look();
}

async function look() {
  if (document.hidden || !$("engine").open) return;
  try {
    last = parse(await (await call("metrics", { accept: "text/plain" })).text());
    draw();
  } catch {
    // whether the server lives is told in the header
  }
}

// Prometheus' text format: {model: {name: value}}; of histograms only sum and count.
export function parse(exposition) {
  const models = new Map();
  for (const line of exposition.split("\n")) {
    const found = /^coldstream_(\w+)\{([^}]*)\} (\S+)/.exec(line);
    const model = /model="((?:[^"\\]|\\.)*)"/.exec(found?.[2] ?? "")?.[1];
    if (model === undefined || found[1].endsWith("_bucket")) continue;
    if (!models.has(model)) models.set(model, {});
    models.get(model)[found[1]] = Number(found[3]);
  }
  return models;
}

function draw() {
  for (const [model, values] of last) {
    if (values.engine_running === undefined) continue; // it is still loading
    if (!boxes.has(model)) boxes.set(model, new EngineBox(model));
    boxes.get(model).draw(values);
  }
}

const FIGURES = {
  running: (v) => number(v.engine_running),
  queue: (v) => number(Math.max(v.queue_sequences ?? 0, v.engine_waiting ?? 0)),
  speed: (v) => number(v.engine_tokens_per_second, 1),
  prompt_speed: (v) => number(v.engine_prompt_tokens_per_second, 1),
  prefix: (v) => percent(v.engine_prefix_hit_rate),
  step: (v) => (v.engine_step_seconds ? seconds(v.engine_step_seconds) : "–"),
  first: (v) => {
    const count = v.time_to_first_token_seconds_count ?? 0;
    return count ? seconds(v.time_to_first_token_seconds_sum / count) : "–";
  },
  finished: (v) => number(v.engine_finished),
  preemptions: (v) => (v.engine_preemptions ? number(v.engine_preemptions) : null),
  errors: (v) => (v.engine_errors ? number(v.engine_errors) : null),
};

class EngineBox {
  #speeds = Array(60).fill(0);
  #figures = new Map();

  constructor(model) {
    this.line = svg("polyline", { points: "", fill: "none" });
    this.list = el("dl");
    for (const name of Object.keys(FIGURES)) this.#add(name);
    this.used = el("i", { class: "used" });
    this.cached = el("i", { class: "cached" });
    this.blocks = el("p", { class: "dim" });
    const spark = svg("svg", { viewBox: "0 0 100 24", preserveAspectRatio: "none", class: "spark", "aria-hidden": "true" }, this.line);
    const bar = el("div", { class: "blocks", "aria-hidden": "true" }, this.used, this.cached);
    this.blocksTitle = el("h4");
    const root = el("article", { class: "engine" }, el("h3", {}, model), spark, this.list, this.blocksTitle, bar, this.blocks);
    if (!boxes.size) $("engines").replaceChildren();
    $("engines").append(root);
  }

  #add(name) {
    const term = el("dt");
    const value = el("dd");
    this.#figures.set(name, { term, value });
    this.list.append(el("div", {}, term, value));
  }

  draw(values) {
    for (const [name, { term, value }] of this.#figures) {
      const shown = FIGURES[name](values);
      term.parentElement.hidden = shown === null;
      text(term, t(`engine.${name}`));
      text(value, shown ?? "");
    }
    this.#drawBlocks(values);
    this.#drawSpeed(values.engine_tokens_per_second);
  }

  #drawBlocks(values) {
    const total = values.engine_blocks_total || 1;
    const used = values.engine_blocks_used;
    const cached = values.engine_blocks_cached;
    this.used.style.width = `${(100 * used) / total}%`;
    this.cached.style.width = `${(100 * cached) / total}%`;
    text(this.blocksTitle, t("engine.blocks"));
    text(this.blocks, t("engine.blocks.text", { used: number(used), cached: number(cached), total: number(total) }));
  }

  #drawSpeed(speed) {
    this.#speeds = [...this.#speeds.slice(1), speed];
    const most = Math.max(...this.#speeds, 1);
    const points = this.#speeds.map((value, x) => `${((100 * x) / 59).toFixed(1)},${(22 - (20 * value) / most).toFixed(1)}`);
    this.line.setAttribute("points", points.join(" "));
  }
}
