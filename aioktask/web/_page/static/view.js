// SPDX-License-Identifier: MIT
// What the page is drawn with: elements whose content is text and never markup, lists of which only
// the rows in view are there, small lines.
//
// Guarantees: a node that shows a thing stays the node that shows it, and one that has the focus is
// never moved or taken away while its thing is there, so the focus is kept.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") made.textContent = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function setText(node, text) {
  const wanted = String(text);
  if (node.textContent !== wanted) node.textContent = wanted;
}

export function setAttribute(node, name, value) {
  if (value === null) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else if (node.getAttribute(name) !== String(value)) {
    node.setAttribute(name, value);
  }
}

// Has a parent hold these nodes in this order; the one with the focus is not moved, others around it.
export function place(parent, nodes) {
  const wanted = new Set(nodes);
  for (const each of [...parent.children]) if (!wanted.has(each)) each.remove();
  const focused = nodes.find((each) => each.contains(document.activeElement));
  let at = parent.firstElementChild;
  for (const node of nodes) {
    if (node === at) {
      at = at.nextElementSibling;
    } else if (node === focused) {
      while (at !== node) {
        const next = at.nextElementSibling;
        parent.append(at);
        at = next;
      }
      at = node.nextElementSibling;
    } else {
      parent.insertBefore(node, at);
    }
  }
}

// A list by key: nodes are made once, patched in place, and removed with their thing.
export class KeyedList {
  constructor(parent, make) {
    this.parent = parent;
    this.make = make;
    this.shown = new Map();
  }

  update(items) {
    const nodes = [];
    const keys = new Set();
    for (const item of items) {
      keys.add(item.key);
      let shown = this.shown.get(item.key);
      if (!shown) this.shown.set(item.key, (shown = this.make(item)));
      shown.patch(item);
      nodes.push(shown.node);
    }
    for (const key of this.shown.keys()) if (!keys.has(key)) this.shown.delete(key);
    place(this.parent, nodes);
  }
}

const BEYOND = 3; // rows that are there above and below those in view

// A table of rows of one height, of which only those in view are there, and the one with the focus.
export class RowTable {
  constructor(parent, { label, columns, make, empty }) {
    this.make = make;
    this.items = [];
    this.shown = new Map();
    this.empty = element("p", { class: "empty", text: empty, tabindex: -1 });
    this.space = element("div", { class: "space", role: "presentation" });
    this.scroll = element("div", { class: "scroll", role: "rowgroup", tabindex: "0" }, this.space);
    const heads = columns.map(({ title, right, unseen }) =>
      element("div", { role: "columnheader", class: right ? "right" : "" },
        element("span", { class: unseen ? "unseen" : "", text: title })));
    this.table = element("div", { class: "list", role: "table", "aria-label": label },
      element("div", { class: "head", role: "rowgroup" },
        element("div", { role: "row", "aria-rowindex": "1" }, ...heads)),
      this.scroll);
    this.more = element("p", { class: "more" });
    parent.append(this.table, this.more, this.empty);
    this.scroll.addEventListener("scroll", () => this.later(), { passive: true });
    new ResizeObserver(() => this.later()).observe(this.scroll);
  }

  update(items) {
    this.items = items;
    this.draw();
  }

  later() {
    if (!this.waiting) {
      this.waiting = requestAnimationFrame(() => {
        this.waiting = 0;
        this.draw();
      });
    }
  }

  draw() {
    const items = this.items;
    this.table.hidden = !items.length;
    this.empty.hidden = !!items.length;
    setAttribute(this.table, "aria-rowcount", items.length + 1);
    const height = parseFloat(getComputedStyle(this.table).getPropertyValue("--row")) || 40;
    const total = `${items.length * height}px`;
    if (this.space.style.height !== total) this.space.style.height = total;
    this.tellMore(height);
    const first = Math.max(Math.floor(this.scroll.scrollTop / height) - BEYOND, 0);
    const last = Math.ceil((this.scroll.scrollTop + this.scroll.clientHeight) / height) + BEYOND;
    const focused = this.space.contains(document.activeElement)
      ? document.activeElement.closest("[role=row]").dataset.key : null;
    const kept = new Set();
    const nodes = [];
    let focusStays = false;
    items.forEach((item, index) => {
      const hasFocus = item.key === focused;
      if (!hasFocus && (index < first || index >= last)) return;
      focusStays ||= hasFocus;
      kept.add(item.key);
      let row = this.shown.get(item.key);
      if (!row) {
        row = this.make(item);
        row.node.dataset.key = item.key;
        row.node.setAttribute("role", "row");
        this.shown.set(item.key, row);
      }
      row.patch(item);
      setAttribute(row.node, "aria-rowindex", index + 2);
      const where = `translateY(${index * height}px)`;
      if (row.node.style.transform !== where) row.node.style.transform = where;
      nodes.push(row.node);
    });
    for (const key of this.shown.keys()) if (!kept.has(key)) this.shown.delete(key);
    if (focused !== null && !focusStays) (items.length ? this.scroll : this.empty).focus({ preventScroll: true });
    place(this.space, nodes);
  }

  // Says how many rows are out of view, of which half or less is seen.
  tellMore(height) {
    const { scrollTop, clientHeight } = this.scroll;
    const above = Math.min(Math.round(scrollTop / height), this.items.length);
    const below = clientHeight ? Math.max(this.items.length - Math.round((scrollTop + clientHeight) / height), 0) : 0;
    const parts = [above && `${above} more above`, below && `${below} more below`];
    this.more.hidden = !above && !below;
    setText(this.more, parts.filter(Boolean).join(", "));
  }
}

export function cell(classes = "", ...children) {
  return element("div", { role: "cell", class: classes }, ...children);
}

// A bar of progress that says the same in words.
export class Bar {
  constructor() {
    this.fill = element("div", { class: "fill" });
    this.percent = element("span", { class: "percent", "aria-hidden": "true" });
    this.track = element("div", { class: "track", role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100" }, this.fill);
    this.node = element("div", { class: "bar" }, this.track, this.percent);
  }

  patch({ name, fraction, percent, text, phase }) {
    const undoing = phase === "undoing" || phase === "undo failed";
    setAttribute(this.node, "data-undo", undoing ? "" : null);
    setAttribute(this.node, "data-unknown", fraction === null ? "" : null);
    setAttribute(this.track, "aria-label", `Progress of ${name}`);
    setAttribute(this.track, "aria-valuenow", fraction === null ? null : Math.floor(fraction * 100));
    setAttribute(this.track, "aria-valuetext", [percent, text].filter(Boolean).join(", ") || "unknown");
    const width = `scaleX(${fraction === null ? 1 : fraction})`;
    if (this.fill.style.transform !== width) this.fill.style.transform = width;
    setText(this.percent, percent);
  }
}

const PHASES = {
  waiting: ["○", "quiet"], waits: ["○", "quiet"], running: ["▶", "accent"], stopping: ["■", "warn"], undoing: ["◀", "warn"],
  settled: ["●", "good"], finished: ["✓", "good"], failed: ["✕", "bad"], cancelled: ["■", "warn"],
  overloaded: ["✕", "bad"], "timed out": ["✕", "bad"], "undo failed": ["✕", "bad"],
  alive: ["●", "good"], "does not answer": ["!", "warn"], gone: ["✕", "bad"],
  working: ["▶", "accent"], idle: ["○", "quiet"], starting: ["…", "quiet"], stuck: ["!", "bad"],
  opening: ["…", "quiet"], closed: ["✓", "quiet"], lost: ["✕", "bad"],
};

// A state: a sign and a word, in a tone that only repeats them.
export class State {
  constructor() {
    this.sign = element("span", { class: "sign", "aria-hidden": "true" });
    this.word = element("span");
    this.node = element("span", { class: "state" }, this.sign, this.word);
  }

  patch(word) {
    const [sign, tone] = PHASES[word] || ["·", "quiet"];
    setText(this.sign, sign);
    setText(this.word, word);
    setAttribute(this.node, "data-tone", tone);
  }
}

const SVG = "http://www.w3.org/2000/svg";
const SAMPLES = 120;

// A line of the last values of something, beside its value in words.
export class Line {
  constructor(name) {
    this.values = [];
    this.name = name;
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("viewBox", "0 0 120 22");
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    this.line = document.createElementNS(SVG, "polyline");
    this.svg.append(this.line);
    this.text = element("span");
    this.node = element("div", { class: "loop" }, this.svg, this.text);
  }

  patch(value, text) {
    this.values.push(value);
    if (this.values.length > SAMPLES) this.values.shift();
    const top = Math.max(...this.values, 5);
    const left = SAMPLES - this.values.length;
    this.line.setAttribute("points", this.values.map((each, at) => `${left + at},${(20.5 - 19 * each / top).toFixed(1)}`).join(" "));
    setAttribute(this.svg, "aria-label", `${this.name}, the last minute`);
    setText(this.text, text);
  }
}
