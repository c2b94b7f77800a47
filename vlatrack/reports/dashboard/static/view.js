"use strict";
/* How all charts of a page are looked at: what x is, smoothing, a logarithmic y axis, one zoom. It stands in the address,
   so that a page can be shared as it is seen. */

VT.view = {
  x: "step", smoothing: 0, log: false, zoom: null, charts: new Set(),
  fine: new Map(), /* of each run the lines of the zoomed stretch in more detail, as the server gives them */
  sources: () => [], /* the runs of the page as {run, axes} */
  details: null, /* asks the server for the lines of a run between two steps; a report has no server */
};

(() => {
  const asked = new URLSearchParams(location.search), smoothing = Number(asked.get("smoothing"));
  if (Object.keys(VT.X_LABELS).includes(asked.get("x"))) VT.view.x = asked.get("x");
  if (smoothing > 0 && smoothing < 1) VT.view.smoothing = smoothing;
  VT.view.log = asked.get("log") === "1";
  const zoom = (asked.get("zoom") ?? "").split("~").map(Number);
  if (zoom.length === 2 && zoom.every(Number.isFinite) && zoom[0] < zoom[1]) VT.view.zoom = zoom;
})();

VT.rememberView = () => {
  const { x, smoothing, log, zoom } = VT.view;
  VT.setQuery({ x: x === "step" ? null : x, smoothing: smoothing || null, log: log ? 1 : null,
    zoom: zoom && zoom.map((end) => Number(end.toPrecision(9))).join("~") });
};

VT.redraw = () => {
  for (const chart of VT.view.charts) {
    chart.isOld = true;
    chart.update();
  }
};
VT.themeListeners.push(VT.redraw);

/* Once for whatever comes before the next frame: the details of twenty runs arrive one after the other. */
let isRedrawing = false;
VT.redrawSoon = () => {
  if (isRedrawing) return;
  isRedrawing = true;
  requestAnimationFrame(() => { isRedrawing = false; VT.redraw(); });
};

VT.forgetCharts = () => {
  for (const chart of VT.view.charts) chart.plot?.destroy();
  VT.view.charts.clear();
};

VT.zoomTo = (range) => {
  VT.view.zoom = range;
  if (!range) VT.view.fine.clear();
  VT.rememberView();
  VT.redraw();
  VT.refineSoon();
};

/* Show more or less of x around a place; all of it if there is nothing more to see. */
VT.zoomBy = (plot, factor, around) => {
  const { min, max } = plot.scales.x, xs = plot.data[0], first = xs[0], last = xs[xs.length - 1];
  const middle = around ?? (min + max) / 2, width = (max - min) * factor;
  const inside = xs.filter((x) => x >= middle - width / 2 && x <= middle + width / 2);
  if (factor < 1 && inside.length < 2) return;
  const low = Math.max(first, middle - width / 2), high = Math.min(last, low + width);
  VT.zoomTo(low <= first && high >= last ? null : [Math.max(first, high - width), high]);
};

VT.panBy = (plot, share) => {
  const { min, max } = plot.scales.x, xs = plot.data[0], width = max - min;
  if (!VT.view.zoom) return;
  const low = Math.min(Math.max(xs[0], min + share * width), Math.max(xs[0], xs[xs.length - 1] - width));
  VT.zoomTo([low, low + width]);
};

/* --- detail: a zoomed stretch is asked for again, as only few points of a long run are on the page ------------ */

let refining = 0, refineTimer = null;

VT.refineSoon = (after = 120) => {
  clearTimeout(refineTimer);
  refineTimer = setTimeout(VT.refine, after);
};

VT.refine = async () => {
  const { zoom, details } = VT.view, number = ++refining;
  if (!zoom || !details) return;
  await Promise.all(VT.view.sources().map(async ({ run, axes }) => {
    const [low, high] = VT.stepsBetween(zoom, run, axes);
    const lines = await details(run.id, low, high).catch(() => null); /* the header says that the server is not there */
    if (number !== refining || !lines) return;
    VT.view.fine.set(run.id, lines);
    VT.redrawSoon();
  }));
};

/* Of a run that goes on, the end of the zoomed stretch grows: it is asked for again, but not with each record. */
VT.refineIfOpen = () => {
  const { zoom, sources } = VT.view;
  const isOpen = zoom && sources().some(({ run, axes }) => {
    const ends = axes.filter((axis) => axis.step.length).map((axis) => VT.xValues({ step: axis.step.slice(-1), t_ms: axis.t_ms.slice(-1) }, run)[0]);
    return Math.max(...ends) <= zoom[1];
  });
  if (isOpen) VT.refineSoon(3000);
};

/* --- the controls of all charts of a page -------------------------------------------------------------------- */

/* `runs`: those of the page; what none of them knows cannot be chosen as x. */
VT.viewControls = (runs) => {
  const change = (key, value) => {
    VT.view[key] = value;
    if (key === "x") { VT.view.zoom = null; VT.view.fine.clear(); }
    VT.rememberView();
    VT.redraw();
  };
  const isKnown = (x) => runs.some((run) => VT.knowsX(run, x));
  if (!isKnown(VT.view.x)) VT.view.x = "step";
  const select = VT.h("select", { id: "x-axis", onchange: (e) => change("x", e.target.value) },
    Object.keys(VT.X_LABELS).map((x) => VT.h("option", { value: x, selected: x === VT.view.x, disabled: !isKnown(x) }, x)));
  const smoothing = VT.h("input", {
    id: "smoothing", type: "range", min: 0, max: 0.99, step: 0.01, value: VT.view.smoothing,
    oninput: (e) => change("smoothing", Number(e.target.value)),
  });
  const log = VT.h("input", { id: "log-y", type: "checkbox", checked: VT.view.log, onchange: (e) => change("log", e.target.checked) });
  const zoom = (factor) => () => {
    const shown = [...VT.view.charts].find((chart) => chart.plot && chart.isSeen);
    if (shown) VT.zoomBy(shown.plot, factor);
  };
  return VT.h("div", { class: "controls", role: "group", "aria-label": "charts" },
    VT.h("label", { for: "x-axis" }, "x "), select,
    VT.h("label", { for: "smoothing" }, "smoothing "), smoothing,
    VT.h("label", { for: "log-y" }, log, " log y"),
    VT.h("button", { type: "button", "aria-label": "zoom in", title: "zoom in", onclick: zoom(0.5) }, "+"),
    VT.h("button", { type: "button", "aria-label": "zoom out", title: "zoom out", onclick: zoom(2) }, "−"),
    VT.h("button", { type: "button", onclick: () => VT.zoomTo(null) }, "whole run"),
    VT.h("details", { class: "keys" }, VT.h("summary", {}, "keys"), VT.h("p", {}, VT.KEYS)));
};
VT.KEYS = "Of the chart that has the focus: ← → next value · m next mark, M the one before · + − zoom · Shift ← → move the "
  + "zoomed stretch · Escape whole run. With a mouse: drag over a stretch, double-click for the whole run.";
