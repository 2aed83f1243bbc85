// The start as bars on one axis of time: a row a span; ranges, checksums and layers share rows (as /startup.svg does).

import { el, text } from "./dom.js";
import { seconds, t } from "./words.js";

const SHARED = new Set(["range", "checksum", "prefill layer"]);
const NEAR = 0.002; // of the whole axis: two bars of a row that are nearer than that are drawn as one
const STEPS = [0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200];

export function drawWaterfall(box, spans) {
  const end = Math.max(...spans.map((span) => span.end), 0.001);
  const list = el("ol", { class: "rows" }, ...rowsOf(spans).map((row) => drawRow(row, end)));
  const marks = spans.filter((span) => span.start === span.end);
  const instants = el("ul", { class: "marks" }, ...marks.map((mark) => drawMark(mark, end)));
  box.replaceChildren(drawAxis(end), list, instants, el("p", { class: "dim" }, t("start.total", { seconds: seconds(end) })));
}

function rowsOf(spans) {
  const rows = new Map();
  for (const span of spans) {
    if (span.start === span.end) continue;
    const shared = SHARED.has(span.name);
    const id = shared ? `${span.name} ${span.details.lane ?? span.thread}` : rows.size;
    if (!rows.has(id)) rows.set(id, { name: span.name, shared, model: span.details.model, spans: [] });
    rows.get(id).spans.push(span);
  }
  return [...rows.values()].sort((a, b) => a.spans[0].start - b.spans[0].start);
}

function drawRow(row, end) {
  const busy = row.spans.reduce((sum, span) => sum + span.end - span.start, 0);
  const name = row.shared ? t("start.many", { count: row.spans.length, name: row.name }) : row.name;
  const bars = merged(row.spans, end * NEAR).map((span) => place(el("i", {}), span, end));
  const track = el("span", { class: "track", "aria-hidden": "true" }, ...bars);
  const label = row.model === undefined ? name : `${name} · ${row.model}`;
  return el(
    "li",
    { class: row.shared ? "shared" : "", title: label },
    el("span", { class: "name" }, label),
    track,
    el("span", { class: "time" }, seconds(busy)),
  );
}

function merged(spans, near) {
  const bars = [];
  for (const span of [...spans].sort((a, b) => a.start - b.start)) {
    const last = bars.at(-1);
    if (last !== undefined && span.start - last.end < near) last.end = Math.max(last.end, span.end);
    else bars.push({ start: span.start, end: span.end });
  }
  return bars;
}

function place(bar, span, end) {
  bar.style.left = `${(100 * span.start) / end}%`;
  bar.style.width = `max(2px, ${(100 * (span.end - span.start)) / end}%)`;
  return bar;
}

function drawAxis(end) {
  const step = STEPS.find((candidate) => end / candidate <= 6) ?? end;
  const track = el("span", { class: "track" });
  for (let at = 0; at <= end; at += step) {
    const tick = el("b", {}, `${Number(at.toFixed(2))}`);
    tick.style.left = `${(100 * at) / end}%`;
    track.append(tick);
  }
  return el("div", { class: "axis", "aria-hidden": "true" }, el("span", { class: "name" }), track, el("span", { class: "time" }, "s"));
}

function drawMark(mark, end) {
  const line = el("i", {});
  line.style.left = `${(100 * mark.start) / end}%`;
  const label = el("span", { class: "name" }, mark.name);
  const time = el("span", { class: "time" });
  text(time, seconds(mark.start));
  return el("li", {}, label, el("span", { class: "track", "aria-hidden": "true" }, line), time);
}
