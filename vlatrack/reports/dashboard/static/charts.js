"use strict";
/* Charts over uPlot: lines with their raw values kept visible under a smoothing, and marks of what happened. */

VT.NEAR = 8; /* CSS pixels between the cursor and a mark that it is on */

VT.Chart = class {
  /* options: title, hint, unit, direction, fromZero, floor, shared: {min, max}, lines(), references() and marks(), which
     are asked whenever the chart is drawn anew. A line is {key, label, color, width, dash, axis, values, bad, run}, a mark
     {step, t_ms, color, dash, run, text}. */
  constructor(options) {
    this.options = options;
    this.plot = null;
    this.values = VT.h("div", { class: "values" });
    this.note = VT.h("div", { class: "mark-note", hidden: true });
    this.place = VT.h("div", { class: "plot" }, this.note);
    const direction = options.direction && options.direction !== "none" ? `${options.direction} is better` : "";
    this.element = VT.h("figure", { class: "chart", tabindex: 0, "data-key": options.key ?? options.title,
        onkeydown: (event) => this.onKey(event), onblur: () => this.values.removeAttribute("aria-live") },
      VT.h("figcaption", { title: options.hint },
        VT.h("button", { class: "title plain", type: "button", title: "enlarge", onclick: () => this.enlarge() }, options.title),
        VT.h("span", { class: "unit" }, [options.unit, direction].filter(Boolean).join(" · "))),
      this.place, this.values);
    this.waitForRelease();
    VT.view.charts.add(this);
    new IntersectionObserver((entries) => {
      this.isSeen = entries[entries.length - 1].isIntersecting;
      if (this.isSeen) this.draw();
    }, { rootMargin: "200px" }).observe(this.element);
    new ResizeObserver(() => this.resize()).observe(this.place);
  }

  /* While somebody drags over a stretch, new values wait: drawing them would end the dragging. */
  waitForRelease() {
    this.place.addEventListener("mousedown", () => {
      this.isHeld = true;
      addEventListener("mouseup", () => setTimeout(() => { this.isHeld = false; if (this.isOld) this.update(); }), { once: true });
    });
  }

  enlarge() { this.element.classList.toggle("large"); }

  size() {
    return { width: Math.max(120, this.place.clientWidth), height: this.element.classList.contains("large") ? 380 : 190 };
  }

  resize() {
    if (!this.plot) return;
    const { width, height } = this.size();
    if (width !== this.plot.width || height !== this.plot.height) this.plot.setSize({ width, height });
  }

  /* New data are there, or another view is wanted. */
  update() {
    if (this.isSeen && !this.isHeld) this.draw(); else this.isOld = true;
  }

  draw() {
    if (this.plot && !this.isOld) return;
    const at = this.plot?.cursor.idx ?? null, x = at === null ? null : this.plot.data[0][at];
    this.lines = this.options.lines().map(VT.inDetail);
    this.isOld = false;
    this.plot?.destroy();
    const { data, series } = this.tables();
    this.plot = new uPlot(this.uplotOptions(series, data), data, this.place);
    this.shown = series.slice(1).map((one, i) => ({ ...one, index: i + 1 })).filter((one) => !one.raw);
    this.showValues(null);
    if (x !== null) this.pointAt(x);
    this.element.setAttribute("aria-label", this.description());
  }

  /* The lines side by side over all their x values, as uPlot wants them. */
  tables() {
    const tables = [], series = [{}];
    for (const line of this.lines) {
      const xs = VT.xValues(line.axis, line.run);
      const keep = VT.sameX(xs);
      const x = keep.map((i) => xs[i]), y = keep.map((i) => line.values[i]);
      const smooth = VT.view.smoothing > 0 && y.length > 3;
      const style = { label: line.label, stroke: line.color, dash: line.dash ?? undefined, spanGaps: true };
      const zoom = VT.view.zoom, inView = zoom ? x.filter((one) => one >= zoom[0] && one <= zoom[1]).length : x.length;
      const points = { show: inView < 40 && !smooth, size: 5, fill: line.color };
      if (smooth) {
        tables.push([x, y]);
        series.push({ ...style, width: 1, alpha: 0.3, points: { show: false }, raw: true });
        tables.push([x, VT.smoothed(y, VT.view.smoothing)]);
      } else tables.push([x, y]);
      series.push({ ...style, width: line.width, points });
    }
    return { data: tables.length ? uPlot.join(tables) : [[]], series };
  }

  description() {
    const told = this.lines.filter((line) => line.values.length).map((line) =>
      `${line.label}: from ${VT.number(line.values[0])} to ${VT.number(line.values[line.values.length - 1])}`);
    const marks = this.marks().length;
    return `${this.options.title}; ${told.join("; ")}${marks ? `; ${marks} ${marks > 1 ? "marks" : "mark"}, m goes to the next` : ""}`;
  }

  uplotOptions(series, data) {
    const grid = { stroke: VT.css("--grid"), width: 1 }, ticks = { show: false };
    const axis = { stroke: VT.css("--muted"), grid, ticks, font: "11px system-ui, sans-serif" };
    const isTime = VT.view.x === "time", zoom = VT.view.zoom;
    let low = Infinity;
    for (const column of data.slice(1)) for (const value of column) if (value !== null && value < low) low = value;
    const isLog = VT.view.log && low > 0 && isFinite(low);
    return {
      ...this.size(), series,
      legend: { show: false }, cursor: { y: false, sync: { key: "vlatrack" }, points: { size: 6 }, drag: { x: true, y: false } },
      padding: [6, 8, 0, 0],
      scales: {
        x: { time: false, range: zoom ? () => zoom : undefined },
        y: isLog ? { distr: 3, log: 10 } : { range: (u, min, max) => this.yRange(min, max) },
      },
      axes: [
        { ...axis, size: 26, space: 60, values: (u, splits) => splits.map((v) => (isTime ? VT.duration(v) : VT.short(v))) },
        { ...axis, size: 50, values: (u, splits) => splits.map((v) => (v === null ? "" : VT.short(v))) },
      ],
      hooks: {
        draw: [(u) => this.drawMarks(u)],
        setCursor: [(u) => { this.showValues(u.cursor.idx); this.showMarks(u.cursor.left); }],
        setSelect: [(u) => this.onSelect(u)],
        ready: [(u) => { u.over.ondblclick = () => VT.zoomTo(null); }],
      },
    };
  }

  yRange(min, max) {
    if (min === null || !isFinite(min)) return [0, 1];
    const { shared, unit, floor, fromZero } = this.options, together = shared?.();
    if (together && !VT.view.zoom) [min, max] = [together.min, together.max];
    if (unit === "fraction") return [-0.03, 1.03];
    for (const { value } of this.options.references?.() ?? []) { /* unless that leaves the lines in a narrow strip */
      if (Math.abs(value) <= 3 * Math.max(Math.abs(min), Math.abs(max))) [min, max] = [Math.min(min, value), Math.max(max, value)];
    }
    if (floor !== undefined && floor !== null) min = Math.min(min, floor);
    const margin = (max - min || Math.abs(max) || 1) * 0.07;
    const bottom = fromZero || (min >= 0 && min < 0.4 * max) ? Math.min(0, min) : min - margin;
    return [bottom, max + margin];
  }

  onSelect(u) {
    if (u.select.width > 3) VT.zoomTo([u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")]);
  }

  onKey(event) {
    if (!this.plot || event.ctrlKey || event.altKey || event.metaKey || event.target !== this.element) return;
    const cursor = this.plot.cursor.idx ?? null, x = cursor === null ? null : this.plot.data[0][cursor];
    const way = event.key === "ArrowLeft" ? -1 : 1;
    const actions = {
      ArrowLeft: () => (event.shiftKey ? VT.panBy(this.plot, way / 2) : this.moveCursor(way)),
      ArrowRight: () => (event.shiftKey ? VT.panBy(this.plot, way / 2) : this.moveCursor(way)),
      "+": () => VT.zoomBy(this.plot, 0.5, x), "=": () => VT.zoomBy(this.plot, 0.5, x), "-": () => VT.zoomBy(this.plot, 2, x),
      m: () => this.moveToMark(1), M: () => this.moveToMark(-1),
      Escape: () => (this.note.hidden ? VT.zoomTo(null) : this.showMarks(null)),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    this.values.setAttribute("aria-live", "polite"); /* who moves by keys hears the values; who points sees them */
    actions[event.key]();
  }

  moveCursor(way) {
    const xs = this.plot.data[0], { min, max } = this.plot.scales.x;
    const first = xs.findIndex((x) => x >= min), beyond = xs.findIndex((x) => x > max);
    const last = (beyond < 0 ? xs.length : beyond) - 1;
    const at = this.plot.cursor.idx ?? (way < 0 ? last + 1 : first - 1);
    this.pointAt(xs[Math.min(last, Math.max(first, at + way))]);
  }

  moveToMark(way) {
    const { min, max } = this.plot.scales.x, left = this.plot.cursor.left;
    const places = [...new Set(this.marks().filter((mark) => mark.x >= min && mark.x <= max).map((mark) => mark.x))]
      .map((x) => ({ x, left: this.plot.valToPos(x, "x") })).sort((a, b) => way * (a.left - b.left));
    const next = places.find((place) => left < 0 || way * (place.left - left) > 1) ?? places[0];
    if (next) this.pointAt(next.x);
  }

  pointAt(x) {
    if (x === undefined) return;
    this.plot.setCursor({ left: this.plot.valToPos(x, "x"), top: this.plot.over.clientHeight / 2 });
  }

  /* The values at the cursor, else the last ones, with the names of the lines: the legend. */
  showValues(index) {
    if (!this.plot) return;
    const data = this.plot.data;
    const items = this.shown.map((one) => {
      const ys = data[one.index] ?? [];
      let i = index ?? ys.length - 1;
      while (i >= 0 && (ys[i] === null || ys[i] === undefined)) i--;
      return VT.h("span", { class: "value" }, VT.swatch(one.stroke, one.dash), one.label, " ",
        VT.h("b", {}, i < 0 ? "–" : VT.number(ys[i])));
    });
    const at = index === null || index === undefined ? null : VT.h("span", { class: "at" }, VT.xText(data[0][index]));
    const bad = this.lines.reduce((sum, line) => sum + (line.bad_count ?? 0), 0);
    const note = bad ? VT.h("span", { class: "bad" }, `${VT.count(bad)} values not finite`) : null;
    const references = (this.options.references?.() ?? []).map((one) => VT.h("span", { class: "value" },
      VT.swatch(VT.css("--muted"), one.dash), one.label, " ", VT.h("b", {}, VT.number(one.value))));
    this.values.replaceChildren(...items, ...references, ...[at, note].filter(Boolean));
  }
};
