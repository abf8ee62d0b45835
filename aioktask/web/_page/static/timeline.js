// SPDX-License-Identifier: MIT
// The timeline: what each thread served, drawn on a canvas, moved and zoomed by buttons, keys and
// the pointer.
//
// Marks come once and stay until they are out of the last minutes, so what is kept is bounded. It
// draws when something came or somebody moved it, and only what is in view. Undo is hatched, a lent
// nice has a bar on top, many short jobs are low, and where a chunk raised there is a cross: nothing
// is told by colour alone. What a thread does inside a chunk of another job has a row of its own.

import { setText } from "./view.js";

const KEPT_SECONDS = 300;
export const MOST_MARKS = 20000;
const SPANS = [5, 10, 20, 30, 60, 120, 300];
const ROW = 20;
const HEAD = 20;
const AXIS = 22;
const HUES = [214, 168, 282, 24, 338, 192, 44, 96];
const STEPS = [1, 2, 5, 10, 15, 30, 60];

export class Timeline {
  constructor(box, canvas, readout) {
    this.box = box;
    this.canvas = canvas;
    this.readout = readout;
    this.marks = new Map();
    this.helpers = [];
    this.rows = [];
    this.clock = 0;
    this.at = "";
    this.span = 3;
    this.end = null; // the clock at the right edge; null follows the present
    this.pointer = null;
    this.changed = () => {};
    new ResizeObserver(() => this.draw()).observe(box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    box.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("pointerdown", (event) => this.grab(event));
    canvas.addEventListener("pointermove", (event) => {
      this.pointer = [event.offsetX, event.offsetY];
      this.tell();
    });
    canvas.addEventListener("pointerleave", () => {
      this.pointer = null;
      this.tell();
    });
  }

  get live() {
    return this.end === null;
  }

  replace(marks) {
    this.marks.clear();
    this.add(marks);
  }

  add(marks) {
    for (const [pid, thread, job, name, kind, lent, start, stop, count, depth, failed] of marks) {
      const key = `${pid}:${thread}:${depth}:${job}:${kind}:${lent}:${start}:${count > 1}`;
      this.marks.set(key, { pid, thread, job, name, kind, lent, start, stop, count, depth, failed });
    }
  }

  // As they came: see `add`.
  all() {
    return [...this.marks.values()].map(({ pid, thread, job, name, kind, lent, start, stop, count, depth, failed }) => [pid, thread, job, name, kind, lent, start, stop, count, depth, failed]);
  }

  update(state) {
    this.clock = state.clock;
    this.at = state.at;
    this.helpers = state.helpers;
    const least = this.clock - KEPT_SECONDS;
    let surplus = this.marks.size - MOST_MARKS;
    for (const [key, mark] of this.marks) {
      if (mark.stop < least || surplus-- > 0) this.marks.delete(key);
    }
    this.draw();
  }

  // Moving.

  move(parts) {
    const span = SPANS[this.span];
    const wanted = (this.end ?? this.clock) + parts * span;
    const least = this.clock - KEPT_SECONDS + span;
    this.end = wanted >= this.clock ? null : Math.max(wanted, Math.min(least, this.clock));
    this.draw();
    this.changed();
  }

  zoom(step) {
    this.span = Math.min(Math.max(this.span + step, 0), SPANS.length - 1);
    this.draw();
    this.changed();
  }

  hold(stop) {
    this.end = stop ? this.clock : null;
    this.draw();
    this.changed();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const act = {
      ArrowLeft: () => this.move(-0.25), ArrowRight: () => this.move(0.25),
      "+": () => this.zoom(-1), "=": () => this.zoom(-1), "-": () => this.zoom(1),
      " ": () => this.hold(this.live), End: () => this.hold(false),
    }[event.key];
    if (act) {
      event.preventDefault();
      act();
    }
  }

  grab(event) {
    if (event.button) return; // a menu's
    const from = event.offsetX;
    const end = this.end ?? this.clock;
    const scale = SPANS[this.span] / Math.max(this.width - this.gutter, 1);
    this.canvas.setPointerCapture(event.pointerId);
    const drag = (each) => {
      const by = (from - each.offsetX) * scale;
      if (Math.abs(from - each.offsetX) > 3) {
        this.end = end;
        this.move(by / SPANS[this.span]);
      }
    };
    this.canvas.addEventListener("pointermove", drag);
    // However it ends: a touch that becomes a scroll is cancelled.
    this.canvas.addEventListener("lostpointercapture", () => this.canvas.removeEventListener("pointermove", drag), { once: true });
  }

  // Drawing.

  layout() {
    const depths = new Map(); // by process, then by thread: how many rows it has beside its first
    const note = ({ pid, thread, depth }) => {
      if (!depths.has(pid)) depths.set(pid, new Map());
      const threads = depths.get(pid);
      threads.set(thread, Math.max(threads.get(thread) ?? 0, depth));
    };
    for (const mark of this.marks.values()) note(mark);
    for (const each of this.helpers) if (each.state !== "starting") note(each);
    this.rows = [];
    let y = AXIS;
    for (const pid of [...depths.keys()].sort((a, b) => a - b)) {
      this.rows.push({ pid, head: true, y });
      y += HEAD;
      for (const [thread, most] of [...depths.get(pid)].sort(([a], [b]) => a - b)) {
        for (let depth = 0; depth <= most; depth++) {
          this.rows.push({ pid, thread, depth, y });
          y += ROW;
        }
      }
    }
    return Math.min(Math.max(y + 6, AXIS + 2 * ROW), 6000);
  }

  draw() {
    const height = this.layout();
    const width = (this.width = this.box.clientWidth);
    if (!width) return;
    this.gutter = width < 560 ? 66 : 110;
    const ratio = window.devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * ratio) || this.canvas.height !== Math.round(height * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
      this.canvas.style.height = `${height}px`;
    }
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const draw = this.canvas.getContext("2d");
    draw.setTransform(ratio, 0, 0, ratio, 0, 0);
    draw.clearRect(0, 0, width, height);
    draw.font = "12px " + getComputedStyle(document.body).fontFamily;
    draw.textBaseline = "middle";
    this.theme = { dark, text: colour("--text"), quiet: colour("--quiet"), line: colour("--line"), soft: colour("--soft"), undo: colour("--bar-undo"), bad: colour("--bad"), panel: colour("--panel") };
    const span = SPANS[this.span];
    const end = this.end ?? this.clock;
    this.from = end - span;
    this.scale = (width - this.gutter - 8) / span;
    this.axis(draw, end, span, height);
    const at = new Map();
    for (const row of this.rows) {
      if (row.head) {
        draw.fillStyle = this.theme.quiet;
        draw.fillText(width < 560 ? `${row.pid}` : `process ${row.pid}`, 14, row.y + HEAD / 2 + 1);
        continue;
      }
      at.set(`${row.pid}:${row.thread}:${row.depth}`, row.y);
      draw.fillStyle = this.theme.text;
      const who = row.depth ? "↳ inside" : row.thread === row.pid ? "main" : `${row.thread}`;
      draw.fillText(who, (width < 560 ? 20 : 28) + (row.depth ? 8 * (row.depth - 1) : 0), row.y + ROW / 2);
      draw.fillStyle = this.theme.soft;
      draw.fillRect(this.gutter, row.y + 2, width - this.gutter - 8, ROW - 4);
    }
    this.boxes = [];
    draw.save();
    draw.beginPath();
    draw.rect(this.gutter, 0, width - this.gutter - 8, height);
    draw.clip();
    for (const mark of this.marks.values()) this.box_of(draw, mark, at, end);
    for (const each of this.helpers) {
      if (each.job !== null) {
        this.box_of(draw, { pid: each.pid, thread: each.thread, depth: each.depth, job: each.job, name: each.name, kind: each.kind === "undo" ? "undo" : each.undoing ? "undo" : "work", lent: each.lent, start: each.since, stop: this.clock, count: 1, open: true }, at, end);
      }
    }
    draw.restore();
    this.tell();
  }

  axis(draw, end, span, height) {
    const step = STEPS.find((each) => each * this.scale >= 70) || 60;
    draw.fillStyle = this.theme.quiet;
    draw.strokeStyle = this.theme.line;
    draw.lineWidth = 1;
    draw.textAlign = "center";
    for (let ago = Math.ceil((this.clock - end) / step) * step; ago <= this.clock - end + span; ago += step) {
      const x = Math.round(this.gutter + (this.clock - ago - this.from) * this.scale) + 0.5;
      if (x < this.gutter + 24) continue;
      draw.beginPath();
      draw.moveTo(x, AXIS - 4);
      draw.lineTo(x, height);
      draw.stroke();
      draw.textAlign = x > this.width - 40 ? "right" : "center";
      draw.fillText(ago === 0 ? "now" : ago >= 60 && ago % 60 === 0 ? `−${ago / 60} min` : `−${ago} s`, Math.min(x, this.width - 8), AXIS / 2);
    }
    draw.textAlign = "left";
  }

  box_of(draw, mark, at, end) {
    const y = at.get(`${mark.pid}:${mark.thread}:${mark.depth}`);
    if (y === undefined || mark.stop < this.from || mark.start > end) return;
    const x = Math.max(this.gutter + (mark.start - this.from) * this.scale, this.gutter - 2);
    const right = Math.min(this.gutter + (mark.stop - this.from) * this.scale, this.width);
    const wide = Math.max(right - x, 1.5);
    const short = mark.count > 1;
    const top = y + (short ? ROW / 2 - 3 : 3);
    const tall = short ? 6 : ROW - 6;
    draw.fillStyle = mark.kind === "undo" ? this.hatch(draw) : this.fill(mark.name);
    draw.fillRect(x, top, wide, tall);
    if (wide > 3) {
      draw.fillStyle = this.theme.panel;
      draw.fillRect(x + wide - 1, top, 1, tall);
    }
    if (mark.lent) {
      draw.fillStyle = this.theme.text;
      draw.fillRect(x, top - 2, wide, 3);
    }
    if (wide > 34 && !short) {
      draw.save();
      draw.beginPath();
      draw.rect(x, top, wide - 3, tall);
      draw.clip();
      draw.fillStyle = mark.kind === "undo" ? this.theme.text : this.theme.dark ? "#0d131c" : "#ffffff";
      const left = Math.max(x, this.gutter) + 5;
      draw.fillText((mark.kind === "undo" ? "◀ undo " : "") + mark.name, left, y + ROW / 2 + 0.5);
      draw.restore();
    }
    if (mark.failed) this.cross(draw, x + wide, y + ROW / 2);
    this.boxes.push([x, y, wide, mark]);
  }

  // Where a chunk raised: on a ground of its own, so that it is seen on every colour.
  cross(draw, x, y) {
    draw.fillStyle = this.theme.panel;
    draw.fillRect(x - 9, y - 6, 10, 12);
    draw.strokeStyle = this.theme.bad;
    draw.lineWidth = 2.4;
    draw.beginPath();
    for (const tilt of [-3.5, 3.5]) {
      draw.moveTo(x - 7.5, y - tilt);
      draw.lineTo(x - 0.5, y + tilt);
    }
    draw.stroke();
  }

  fill(name) {
    let hash = 7;
    for (let at = 0; at < name.length; at++) hash = (hash * 31 + name.charCodeAt(at)) >>> 0;
    const hue = HUES[hash % HUES.length];
    return this.theme.dark ? `hsl(${hue} 52% 66%)` : `hsl(${hue} 46% 40%)`;
  }

  hatch(draw) {
    const key = `${this.theme.undo}${this.theme.panel}`;
    if (this.hatched !== key) {
      const tile = document.createElement("canvas");
      tile.width = tile.height = 6;
      const on = tile.getContext("2d");
      on.fillStyle = this.theme.panel;
      on.fillRect(0, 0, 6, 6);
      on.globalAlpha = 0.35;
      on.fillStyle = this.theme.undo;
      on.fillRect(0, 0, 6, 6);
      on.globalAlpha = 1;
      on.strokeStyle = this.theme.undo;
      on.lineWidth = 1.6;
      for (const by of [-6, 0, 6]) {
        on.beginPath();
        on.moveTo(by, 6);
        on.lineTo(by + 6, 0);
        on.stroke();
      }
      this.hatched = key;
      this.tile = tile;
    }
    return draw.createPattern(this.tile, "repeat");
  }

  tell() {
    const found = this.pointer && (this.boxes || []).findLast(([x, y, wide]) =>
      this.pointer[0] >= x - 1 && this.pointer[0] <= x + wide + 1 && this.pointer[1] >= y && this.pointer[1] <= y + ROW);
    const span = SPANS[this.span];
    const shown = span >= 60 ? `${span / 60} min` : `${span} s`;
    const until = this.live ? "up to now" : `up to ${Math.round(this.clock - this.end)} s ago, stopped`;
    if (!found) {
      setText(this.readout, `${shown}, ${until}`);
      return;
    }
    const mark = found[3];
    const what = mark.count > 1 ? `${mark.count} short jobs, the first one ${mark.name}` : `${mark.kind === "undo" ? "undo of " : ""}${mark.name} (job ${mark.job})`;
    const lasts = mark.stop - mark.start;
    const long = lasts < 1 ? `${(lasts * 1000).toFixed(1)} ms` : `${lasts.toFixed(1)} s`;
    setText(this.readout, `${what}: ${long}${mark.open ? " so far" : ""}${mark.lent ? ", at a lent nice" : ""}${mark.failed ? ", a chunk failed" : ""}${mark.depth ? ", inside a chunk of another job" : ""}, process ${mark.pid}, ${mark.thread === mark.pid ? "the main thread" : `thread ${mark.thread}`}`);
  }
}
