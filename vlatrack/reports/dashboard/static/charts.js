"use strict";
/* Charts over uPlot: lines with their raw values kept visible under a smoothing, marks of events, one zoom for a page. */

VT.view = { x: "step", smoothing: 0, log: false, zoom: null, charts: new Set() };

/* The x value of each point of an axis {step, t_ms}; `run` says how steps become epochs and samples. */
VT.xValues = (axis, run) => {
  if (VT.view.x === "step") return axis.step;
  if (VT.view.x === "time") return axis.t_ms.map((t) => (t - run.started_ms) / 1000);
  if (VT.view.x === "samples") return axis.step.map((step) => step * run.batch_size);
  return axis.step.map((step) => VT.interpolated(run.epochs, step));
};

/* `table` is [steps, values], both ascending. */
VT.interpolated = (table, step) => {
  const [steps, values] = table;
  if (!steps.length) return 0;
  const last = steps.length - 1;
  if (step <= steps[0]) return steps[0] ? (values[0] * step) / steps[0] : values[0];
  if (step >= steps[last]) return steps[last] ? (values[last] * step) / steps[last] : values[last];
  let low = 0, high = last;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle; else high = middle;
  }
  const share = (step - steps[low]) / (steps[high] - steps[low] || 1);
  return values[low] + share * (values[high] - values[low]);
};

VT.xLabel = () => ({ step: "training step", epoch: "epoch", time: "time since the start", samples: "samples" })[VT.view.x];

/* Exponential moving average without the bias of its beginning. */
VT.smoothed = (values, weight) => {
  let total = 0, norm = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return null;
    total = weight * total + (1 - weight) * value;
    norm = weight * norm + (1 - weight);
    return total / norm;
  });
};

VT.sameX = (xs) => {
  /* uPlot wants strictly ascending x values; of several at one place the last counts. */
  const keep = [];
  for (let i = 0; i < xs.length; i++) if (i + 1 === xs.length || xs[i + 1] > xs[i]) keep.push(i);
  return keep;
};

class Chart {
  /* options: title, hint, unit, direction, fromZero, floor, shared: {min, max}, lines() and marks(), which are asked
     whenever the chart is drawn anew. A line is {key, label, color, width, dash, axis, values, bad, run}. */
  constructor(options) {
    this.options = options;
    this.plot = null;
    this.values = VT.h("div", { class: "values" });
    this.place = VT.h("div", { class: "plot" });
    const direction = options.direction && options.direction !== "none" ? `${options.direction} is better` : "";
    this.element = VT.h("figure", { class: "chart", tabindex: 0, onkeydown: (event) => this.onKey(event) },
      VT.h("figcaption", { title: options.hint },
        VT.h("button", { class: "title plain", type: "button", title: "enlarge", onclick: () => this.enlarge() }, options.title),
        VT.h("span", { class: "unit" }, [options.unit, direction].filter(Boolean).join(" · "))),
      this.place, this.values);
    VT.view.charts.add(this);
    new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting)) { this.isSeen = true; this.draw(); }
      else this.isSeen = false;
    }, { rootMargin: "200px" }).observe(this.element);
    new ResizeObserver(() => this.resize()).observe(this.place);
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
    if (this.isSeen) this.draw(); else this.isOld = true;
  }

  draw() {
    if (this.plot && !this.isOld && this.drawn === this.signature()) return;
    this.lines = this.options.lines();
    this.isOld = false;
    this.drawn = this.signature();
    const isPrinted = this.plot !== null;
    if (isPrinted) this.plot.destroy();
    const tables = [], series = [{}];
    for (const line of this.lines) {
      const xs = VT.xValues(line.axis, line.run);
      const keep = VT.sameX(xs);
      const x = keep.map((i) => xs[i]), y = keep.map((i) => line.values[i]);
      const smooth = VT.view.smoothing > 0 && y.length > 3;
      const style = { label: line.label, stroke: line.color, dash: line.dash ?? undefined, spanGaps: true };
      const points = { show: y.length < 40 && !smooth, size: 5, fill: line.color };
      if (smooth) {
        tables.push([x, y]);
        series.push({ ...style, width: 1, alpha: 0.3, points: { show: false }, raw: true });
        tables.push([x, VT.smoothed(y, VT.view.smoothing)]);
      } else tables.push([x, y]);
      series.push({ ...style, width: line.width, points });
    }
    const data = tables.length ? uPlot.join(tables) : [[]];
    this.plot = new uPlot(this.uplotOptions(series, data), data, this.place);
    this.shown = series.slice(1).map((one, i) => ({ ...one, index: i + 1 })).filter((one) => !one.raw);
    this.showValues(null);
    this.element.setAttribute("aria-label", this.description());
  }

  signature() { return JSON.stringify([VT.view.x, VT.view.smoothing, VT.view.log, VT.isDark()]); }

  description() {
    const told = this.lines.filter((line) => line.values.length).map((line) =>
      `${line.label}: from ${VT.number(line.values[0])} to ${VT.number(line.values[line.values.length - 1])}`);
    return `${this.options.title}; ${told.join("; ")}`;
  }

  uplotOptions(series, data) {
    const grid = { stroke: VT.css("--grid"), width: 1 }, ticks = { show: false };
    const axis = { stroke: VT.css("--muted"), grid, ticks, font: "11px system-ui, sans-serif" };
    const isTime = VT.view.x === "time";
    const values = data.slice(1).flat().filter((v) => v !== null && v !== undefined && isFinite(v));
    const low = Math.min(...values), high = Math.max(...values);
    const isLog = VT.view.log && low > 0;
    const range = (u, min, max) => {
      if (min === null || !isFinite(min)) return [0, 1];
      const shared = this.options.shared?.();
      if (shared) [min, max] = [shared.min, shared.max];
      if (this.options.unit === "fraction") return [-0.03, 1.03];
      if (this.options.floor !== undefined && this.options.floor !== null) min = Math.min(min, this.options.floor);
      const margin = (max - min || Math.abs(max) || 1) * 0.07;
      const bottom = this.options.fromZero || (min >= 0 && min < 0.4 * max) ? Math.min(0, min) : min - margin;
      return [bottom, max + margin];
    };
    return {
      ...this.size(), series,
      legend: { show: false }, cursor: { sync: { key: "vlatrack" }, points: { size: 6 }, drag: { x: true, y: false } },
      padding: [6, 8, 0, 0],
      scales: {
        x: { time: false, range: VT.view.zoom ? () => VT.view.zoom : undefined },
        y: isLog ? { distr: 3, log: 10 } : { range },
      },
      axes: [
        { ...axis, size: 26, space: 60, values: (u, splits) => splits.map((v) => (isTime ? VT.duration(v) : VT.short(v))) },
        { ...axis, size: 50, values: (u, splits) => splits.map((v) => (v === null ? "" : VT.short(v))) },
      ],
      hooks: {
        draw: [(u) => this.drawMarks(u)],
        setCursor: [(u) => this.showValues(u.cursor.idx)],
        setSelect: [(u) => this.onSelect(u)],
        ready: [(u) => { u.over.ondblclick = () => VT.zoomTo(null); }],
      },
    };
  }

  onSelect(u) {
    if (u.select.width > 3) VT.zoomTo([u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")]);
  }

  onKey(event) {
    if (!this.plot || !["ArrowLeft", "ArrowRight", "Escape"].includes(event.key)) return;
    event.preventDefault();
    if (event.key === "Escape") { VT.zoomTo(null); return; }
    const xs = this.plot.data[0], last = xs.length - 1;
    const at = this.plot.cursor.idx ?? (event.key === "ArrowLeft" ? last + 1 : -1);
    const next = Math.min(last, Math.max(0, at + (event.key === "ArrowLeft" ? -1 : 1)));
    this.plot.setCursor({ left: this.plot.valToPos(xs[next], "x"), top: this.plot.over.clientHeight / 2 });
  }

  /* The values at the cursor, else the last ones, with the names of the lines: the legend. */
  showValues(index) {
    if (!this.plot) return;
    const data = this.plot.data;
    const items = this.shown.map((one) => {
      const ys = data[one.index] ?? [];
      let i = index ?? ys.length - 1;
      while (i >= 0 && (ys[i] === null || ys[i] === undefined)) i--;
      const swatch = VT.h("span", { class: one.dash ? "swatch dashed" : "swatch", style: { borderColor: one.stroke } });
      return VT.h("span", { class: "value" }, swatch, one.label, " ", VT.h("b", {}, i < 0 ? "–" : VT.number(ys[i])));
    });
    const at = index === null || index === undefined ? null : VT.h("span", { class: "at" },
      `${VT.xLabel().replace("training ", "")} ${VT.view.x === "time" ? VT.duration(data[0][index]) : VT.number(data[0][index])}`);
    const bad = this.lines.reduce((sum, line) => sum + (line.bad_count ?? 0), 0);
    const note = bad ? VT.h("span", { class: "bad" }, `${VT.count(bad)} values not finite`) : null;
    const references = (this.options.references?.() ?? []).map((one) => VT.h("span", { class: "value" },
      VT.h("span", { class: "swatch dotted" }), one.label, " ", VT.h("b", {}, VT.number(one.value))));
    this.values.replaceChildren(...items, ...references, ...[at, note].filter(Boolean));
  }

  drawMarks(u) {
    const context = u.ctx, { left, top, width, height } = u.bbox;
    context.save();
    context.beginPath();
    context.rect(left, top, width, height);
    context.clip();
    if (this.options.floor !== undefined && this.options.floor !== null) {
      const y = u.valToPos(this.options.floor, "y", true);
      VT.stroke(context, [[left, y], [left + width, y]], VT.css("--text"), [2, 3]);
    }
    for (const reference of this.options.references?.() ?? []) {
      const y = u.valToPos(reference.value, "y", true);
      VT.stroke(context, [[left, y], [left + width, y]], VT.css("--muted"), reference.dash);
    }
    for (const mark of this.options.marks?.() ?? []) {
      const x = u.valToPos(VT.xValues({ step: [mark.step], t_ms: [mark.t_ms] }, mark.run)[0], "x", true);
      VT.stroke(context, [[x, top], [x, top + height]], VT.css(mark.color), mark.dash ?? [4, 4]);
    }
    context.fillStyle = VT.css("--bad");
    context.font = `${12 * devicePixelRatio}px system-ui`;
    for (const line of this.lines) {
      for (const step of line.bad ?? []) {
        const x = u.valToPos(VT.xValues({ step: [step], t_ms: [0] }, line.run)[0], "x", true);
        context.fillText("×", x - 4, top + 12 * devicePixelRatio);
      }
    }
    context.restore();
  }
}
VT.Chart = Chart;

VT.short = (value) => {
  const size = Math.abs(value);
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))}M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(3))}k`;
  if (size > 0 && size < 1e-3) return value.toExponential(0);
  return String(Number(value.toPrecision(4)));
};

VT.stroke = (context, points, color, dash) => {
  context.strokeStyle = color;
  context.lineWidth = devicePixelRatio;
  context.setLineDash(dash.map((length) => length * devicePixelRatio));
  context.beginPath();
  points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.stroke();
};

VT.zoomTo = (range) => {
  VT.view.zoom = range;
  for (const chart of VT.view.charts) {
    if (!chart.plot) continue;
    chart.isOld = true;
    chart.update();
  }
};

VT.redraw = () => { for (const chart of VT.view.charts) chart.update(); };
VT.themeListeners.push(VT.redraw);

/* The controls of all charts of a page: what x is, smoothing, a logarithmic y axis, back from a zoom. */
VT.viewControls = (xs) => {
  const change = (key, value) => { VT.view[key] = value; VT.view.zoom = key === "x" ? null : VT.view.zoom; VT.redraw(); };
  const select = VT.h("select", { id: "x-axis", onchange: (e) => change("x", e.target.value) },
    xs.map((x) => VT.h("option", { value: x }, { step: "step", epoch: "epoch", time: "time", samples: "samples" }[x])));
  const smoothing = VT.h("input", {
    id: "smoothing", type: "range", min: 0, max: 0.99, step: 0.01, value: 0,
    oninput: (e) => change("smoothing", Number(e.target.value)),
  });
  const log = VT.h("input", { id: "log-y", type: "checkbox", onchange: (e) => change("log", e.target.checked) });
  return VT.h("div", { class: "controls", role: "group", "aria-label": "charts" },
    VT.h("label", { for: "x-axis" }, "x "), select,
    VT.h("label", { for: "smoothing" }, "smoothing "), smoothing,
    VT.h("label", { for: "log-y" }, log, " log y"),
    VT.h("button", { type: "button", onclick: () => VT.zoomTo(null) }, "whole run"));
};

/* --- heat maps ---------------------------------------------------------------------------------- */

VT.heatColor = (share) => {
  /* from pale yellow over green to dark blue, ascending in darkness for every kind of sight */
  const stops = [[255, 255, 217], [199, 233, 180], [127, 205, 187], [65, 182, 196], [29, 145, 192], [34, 94, 168], [12, 44, 132]];
  const at = Math.min(0.9999, Math.max(0, share)) * (stops.length - 1), i = Math.floor(at);
  const mix = stops[i].map((from, c) => Math.round(from + (stops[i + 1][c] - from) * (at - i)));
  return `rgb(${mix.join(",")})`;
};

/* Black or white, whichever has more contrast: of the two, one always has enough. */
VT.readableOn = (color) => {
  const [r, g, b] = color.match(/\d+/g).map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
};

/* A grid with numbers: rows and columns have labels, values may be null. */
VT.heatTable = ({ caption, rows, columns, values, max, corner }) => {
  const head = VT.h("tr", {}, VT.h("th", { scope: "col" }, corner), columns.map((label) => VT.h("th", { scope: "col" }, label)));
  const body = rows.map((label, r) => VT.h("tr", {}, VT.h("th", { scope: "row" }, label), columns.map((_, c) => {
    const value = values[r][c], share = value === null ? 0 : value / (max || 1);
    const style = value === null ? {} : { background: VT.heatColor(share), color: VT.readableOn(VT.heatColor(share)) };
    return VT.h("td", { style }, value === null ? "–" : value.toFixed(2));
  })));
  return VT.h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    VT.h("table", { class: "heat" }, VT.h("caption", {}, caption), VT.h("thead", {}, head), VT.h("tbody", {}, body)));
};

/* Rows over the training as a picture: values[r][c] at xs[c]. */
VT.heatPicture = ({ caption, rows, xs, values, max }) => {
  const canvas = VT.h("canvas", { width: Math.max(1, xs.length), height: rows.length, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  values.forEach((row, r) => row.forEach((value, c) => {
    context.fillStyle = value === null ? "#888" : VT.heatColor(value / (max || 1));
    context.fillRect(c, r, 1, 1);
  }));
  const told = VT.h("span", { class: "at" }, `0 to ${VT.number(max)}`);
  canvas.addEventListener("mousemove", (event) => {
    const box = canvas.getBoundingClientRect();
    const c = Math.floor(((event.clientX - box.left) / box.width) * xs.length);
    const r = Math.floor(((event.clientY - box.top) / box.height) * rows.length);
    if (values[r]) told.textContent = `step ${VT.count(xs[c])}, ${rows[r]}: ${VT.number(values[r][c])}`;
  });
  const labels = VT.h("div", { class: "labels", "aria-hidden": "true" }, rows.map((label) => VT.h("span", {}, label)));
  const described = rows.map((label, r) => `${label} ends at ${VT.number(values[r][values[r].length - 1])}`).join(", ");
  return VT.h("div", { class: "chart heat-picture", role: "img", "aria-label": `${caption}: ${described}` },
    VT.h("div", { class: "title" }, caption),
    VT.h("div", { class: "picture" }, labels, canvas),
    VT.h("div", { class: "values" }, VT.h("span", {}, `step ${VT.count(xs[0])} to ${VT.count(xs[xs.length - 1])}`), told));
};
