"use strict";
/* Heat maps: a grid with its numbers, and rows over the training as a picture. */

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
