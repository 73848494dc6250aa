"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const AXIS = 26, MARGIN = 12, GAP = 6;

  const make = (parent, tag, attributes, text) => {
    const found = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
    if (text !== undefined) found.textContent = text;
    return parent.appendChild(found);
  };

  /* Time as people read it; `step` is the distance of two ticks, which says how fine it must be. */
  const clock = (seconds, step) => {
    if (step < 1) return `${seconds.toFixed(Math.min(6, Math.ceil(-Math.log10(step))))} s`;
    const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
    let rest = Math.round(seconds);
    const said = [];
    for (const [length, unit] of parts) {
      const many = Math.floor(rest / length);
      rest -= many * length;
      if (many && (length >= step || !said.length)) said.push(`${many} ${unit}`);
    }
    return said.slice(0, 3).join(" ") || "0 s";
  };

  const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
  const tickStep = (span, most) => {
    const least = span / most;
    const found = least >= 1 && STEPS.find((step) => step >= least);
    if (found) return found;
    const unit = least > 86400 ? 86400 : 1;
    const power = 10 ** Math.floor(Math.log10(least / unit));
    return unit * power * [1, 2, 5, 10].find((factor) => factor * power * unit >= least * 0.999999);
  };

  class Timeline {
    constructor(place, shown) {
      this.shown = shown;
      this.from = 0;
      this.to = Math.max(shown.end, 1e-6);
      this.pitch = Math.round(Math.max(24, Math.min(44, 160 / shown.names.length)));
      this.place = place;
      place.textContent = "";
      const tools = place.appendChild(document.createElement("div"));
      tools.className = "tools";
      for (const [name, spoken, act] of [
        ["whole", "show the whole timeline", () => this.show(0, shown.end)],
        ["first steps", "show the beginning, close enough to tell one step from the next", () => this.show(0, this.close())],
        ["+", "zoom in", () => this.zoom(0.5)],
        ["−", "zoom out", () => this.zoom(2)],
        ["←", "earlier", () => this.move(-0.4)],
        ["→", "later", () => this.move(0.4)],
      ]) {
        const button = tools.appendChild(document.createElement("button"));
        button.type = "button";
        button.textContent = name;
        button.title = spoken;
        button.setAttribute("aria-label", spoken);
        button.addEventListener("click", act);
      }
      this.says = tools.appendChild(document.createElement("span"));
      this.says.className = "says";
      this.says.setAttribute("aria-live", "polite");
      this.svg = make(place, "svg", { role: "img", tabindex: "0" });
      this.listen();
      this.size();
    }

    size() {
      const width = Math.max(480, this.place.clientWidth || 1100);
      if (width === this.width) return;
      this.width = width;
      /* Whole pixels, or every column would be smeared over two. */
      this.left = Math.round(Math.min(200, 12 + 7.4 * Math.max(...this.shown.names.map((name) => Math.min(24, name.length)))));
      this.columns = Math.round(width - this.left - MARGIN);
      this.height = this.shown.names.length * this.pitch + AXIS;
      this.svg.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
      this.draw();
    }

    show(from, to) {
      const all = this.shown.end;
      const span = Math.min(all, Math.max(to - from, all * 1e-6, 1e-3));
      this.from = Math.min(Math.max(from, 0), all - span);
      this.to = this.from + span;
      this.draw();
    }

    /* The end of some thirty spans of the client that takes longest for them. */
    close() {
      return Math.max(...this.shown.rows.map((spans) => spans[Math.min(spans.length, 90) - 1]));
    }

    zoom(factor, at = (this.from + this.to) / 2) {
      this.show(at - (at - this.from) * factor, at + (this.to - at) * factor);
    }

    move(share) {
      const way = share * (this.to - this.from);
      this.show(this.from + way, this.to + way);
    }

    time(event) {
      const box = this.svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * this.width;
      return this.from + ((x - this.left) / this.columns) * (this.to - this.from);
    }

    listen() {
      const { svg } = this;
      svg.addEventListener("wheel", (event) => {
        if (!event.ctrlKey) return;
        event.preventDefault();
        this.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.time(event));
      }, { passive: false });
      svg.addEventListener("keydown", (event) => {
        const act = { "+": () => this.zoom(0.5), "-": () => this.zoom(2), ArrowLeft: () => this.move(-0.2), ArrowRight: () => this.move(0.2),
          Home: () => this.show(0, this.shown.end) }[event.key];
        if (act) { event.preventDefault(); act(); }
      });
      let held = null;
      svg.addEventListener("pointerdown", (event) => { held = this.time(event); svg.setPointerCapture(event.pointerId); });
      svg.addEventListener("pointerup", () => { held = null; });
      svg.addEventListener("pointercancel", () => { held = null; });
      svg.addEventListener("pointermove", (event) => {
        if (held === null) { this.say(event); return; }
        const way = held - this.time(event);
        this.show(this.from + way, this.to + way);
      });
      svg.addEventListener("dblclick", (event) => this.zoom(0.25, this.time(event)));
    }

    /* What is under the pointer. */
    say(event) {
      const box = this.svg.getBoundingClientRect();
      const row = Math.floor((((event.clientY - box.top) / box.height) * this.height) / this.pitch);
      const spans = this.shown.rows[row], at = this.time(event);
      this.says.textContent = "";
      if (!spans) return;
      const first = this.firstAfter(spans, at) * 3;
      if (first < spans.length && spans[first + 1] <= at) {
        const length = spans[first + 2] - spans[first + 1];
        const step = tickStep(Math.max(length, 1e-3), 100);
        this.says.textContent = `${this.shown.names[row]}: ${data.names[spans[first]]}, ${clock(length, step)}, from ${clock(spans[first + 1], step)}`;
      }
    }

    /* Index of the first span that ends after `time`. */
    firstAfter(spans, time) {
      let low = 0, high = spans.length / 3;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (spans[middle * 3 + 2] <= time) low = middle + 1; else high = middle;
      }
      return low;
    }

    /* For each column how much of its time each kind has: [column * kinds + kind]. */
    shares(spans) {
      const kinds = data.kinds.length, scale = this.columns / (this.to - this.from);
      const found = new Float64Array(this.columns * kinds);
      for (let at = this.firstAfter(spans, this.from) * 3; at < spans.length && spans[at + 1] < this.to; at += 3) {
        const begin = Math.max(0, (spans[at + 1] - this.from) * scale), end = Math.min(this.columns, (spans[at + 2] - this.from) * scale);
        for (let column = Math.floor(begin); column < end; column += 1) {
          found[column * kinds + spans[at]] += Math.min(end, column + 1) - Math.max(begin, column);
        }
      }
      return found;
    }

    draw() {
      const { svg, shown } = this;
      svg.textContent = "";
      make(svg, "title", {}, `What ${shown.names.length} clients did or waited for, from ${clock(this.from, 0.1)} to ${clock(this.to, 0.1)}`);
      this.axis();
      shown.names.forEach((name, row) => {
        const y = row * this.pitch;
        const label = make(svg, "text", { x: this.left - 8, y: y + (this.pitch - GAP) / 2 + 4, class: "end" }, name.length > 24 ? `${name.slice(0, 23)}…` : name);
        make(label, "title", {}, name);
        make(svg, "rect", { x: this.left, y, width: this.columns, height: this.pitch - GAP, class: "row" });
        this.row(shown.rows[row], y);
      });
    }

    axis() {
      const bottom = this.shown.names.length * this.pitch, step = tickStep(this.to - this.from, Math.max(3, this.columns / 130));
      for (let at = Math.ceil(this.from / step - 1e-9); at * step <= this.to + step * 1e-9; at += 1) {
        const x = this.left + ((at * step - this.from) / (this.to - this.from)) * this.columns;
        make(this.svg, "line", { x1: x, x2: x, y1: 0, y2: bottom + 4, class: "grid" });
        make(this.svg, "text", { x, y: bottom + 19, class: "tick middle" }, clock(at * step, step));
      }
    }

    /* Neighbouring columns that look the same become one rectangle; one path a kind. */
    row(spans, y) {
      const shares = this.shares(spans), kinds = data.kinds.length, paths = data.kinds.map(() => []), tall = this.pitch - GAP;
      let begin = 0;
      for (let column = 1; column <= this.columns; column += 1) {
        const same = column < this.columns && data.kinds.every((_, kind) => Math.abs(shares[column * kinds + kind] - shares[begin * kinds + kind]) < 1e-6);
        if (same) continue;
        let low = y + tall;
        for (let kind = 0; kind < kinds; kind += 1) {
          const high = shares[begin * kinds + kind] * tall;
          if (high > 0.05) paths[kind].push(`M${this.left + begin} ${low.toFixed(2)}h${column - begin}v${(-high).toFixed(2)}h${begin - column}z`);
          low -= high;
        }
        begin = column;
      }
      paths.forEach((parts, kind) => { if (parts.length) make(this.svg, "path", { d: parts.join(""), class: `kind ${data.kinds[kind]}` }); });
    }
  }

  /* Drawn when their cell is opened: before that they have no width. */
  const drawn = new Map();
  const drawIn = (cell) => {
    for (const place of cell.querySelectorAll(".timeline")) {
      const at = place.dataset.cell;
      if (!drawn.has(at)) drawn.set(at, new Timeline(place, data.timelines[at]));
    }
  };
  for (const cell of document.querySelectorAll("details.cell")) {
    if (cell.open) drawIn(cell);
    cell.addEventListener("toggle", () => { if (cell.open) drawIn(cell); });
  }
  const open = () => {
    const cell = location.hash && document.getElementById(location.hash.slice(1));
    if (cell && cell.matches("details")) { cell.open = true; drawIn(cell); }
  };
  window.addEventListener("hashchange", open);
  open();
  window.addEventListener("resize", () => drawn.forEach((timeline) => timeline.size()));

  const target = document.getElementById("target");
  if (target) {
    const reach = () => data.reach.rows.forEach((row, at) => {
      const line = document.querySelector("#reach tbody").rows[at];
      const found = row.points.find((point) => point[0] >= Number(target.value) / 100 - 1e-9);
      while (line.cells.length > 1) line.deleteCell(1);
      const said = found ? [`${(found[0] * 100).toFixed(1)} %`, ...found.slice(1)] : ["not reached"];
      for (const text of said) {
        const cell = line.insertCell();
        cell.className = "num";
        cell.textContent = text;
      }
      if (!found) line.cells[1].colSpan = 5;
    });
    target.addEventListener("input", reach);
    reach();
  }
})();
