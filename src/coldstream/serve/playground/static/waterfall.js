// The start as bars on one axis of time: a row a span. Ranges, checksums and layers of a model are one row together.

import { el } from "./dom.js";
import { seconds, t } from "./words.js";

const GROUPED = new Set(["range", "checksum", "prefill layer"]);
const NEAR = 0.002; // of the whole axis: two bars of a row that are nearer than that are drawn as one
const STEPS = [0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200];

export function drawWaterfall(box, spans) {
  const end = Math.max(...spans.map((span) => span.end), 0.001);
  const list = el("ol", { class: "rows" }, ...rowsOf(spans).map((row) => drawRow(row, end)));
  const marks = spans.filter((span) => span.start === span.end);
  const instants = el("ul", { class: "marks" }, ...marks.map((mark) => drawMark(mark, end)));
  box.replaceChildren(drawAxis(end), list, instants, el("p", { class: "dim" }, t("start.total", { seconds: seconds(end) })));
}

export function rowsOf(spans) {
  const rows = new Map();
  for (const span of spans) {
    if (span.start === span.end) continue;
    const grouped = GROUPED.has(span.name);
    const id = grouped ? `${span.name} ${span.details.model ?? ""}` : rows.size;
    if (!rows.has(id)) rows.set(id, { name: span.name, grouped, model: span.details.model, spans: [] });
    rows.get(id).spans.push(span);
  }
  return [...rows.values()].sort((a, b) => first(a) - first(b));
}

const first = (row) => Math.min(...row.spans.map((span) => span.start));

function drawRow(row, end) {
  const name = row.grouped ? t("start.many", { count: row.spans.length, name: row.name }) : row.name;
  const bars = merged(row.spans, end * NEAR).map((span) => place(el("i", {}), span, end));
  const track = el("span", { class: "track", "aria-hidden": "true" }, ...bars);
  const label = row.model === undefined ? name : `${name} · ${row.model}`;
  // Spans of one row overlap: what is told is how long at least one of them was at work.
  const busy = merged(row.spans, 0).reduce((sum, span) => sum + span.end - span.start, 0);
  return el(
    "li",
    { class: row.grouped ? "grouped" : "", title: label },
    el("span", { class: "name" }, label),
    track,
    el("span", { class: "time" }, seconds(busy)),
  );
}

function merged(spans, near) {
  const bars = [];
  for (const span of [...spans].sort((a, b) => a.start - b.start)) {
    const last = bars.at(-1);
    if (last !== undefined && span.start - last.end <= near) last.end = Math.max(last.end, span.end);
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
  const track = el("span", { class: "track", "aria-hidden": "true" }, line);
  return el("li", {}, label, track, el("span", { class: "time" }, seconds(mark.start)));
}
