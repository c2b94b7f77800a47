"use strict";
/* Marks on charts: what happened at a step, as a line with a sign on top, and in words where the cursor is; lines for
   reference; crosses for values that are not finite. */

const MOST_TOLD = 3;

VT.Chart.prototype.marks = function () {
  return (this.options.marks?.() ?? []).map((mark) => ({ ...mark, x: VT.xValues({ step: [mark.step], t_ms: [mark.t_ms] }, mark.run)[0] }));
};

/* The words of the marks that lie under the cursor, at `left` CSS pixels; null: none. */
VT.Chart.prototype.showMarks = function (left) {
  const u = this.plot, isMeant = this.place.matches(":hover") || this.element === document.activeElement; /* all share a cursor */
  const isOn = isMeant && left !== null && left >= 0;
  const under = isOn ? this.marks().filter((mark) => Math.abs(u.valToPos(mark.x, "x") - left) <= VT.NEAR) : [];
  this.note.hidden = !under.length;
  if (!under.length) return;
  const told = [...new Map(under.map((mark) => [`${mark.step} ${mark.text}`, mark])).values()];
  const lines = told.slice(0, MOST_TOLD).map((mark) => VT.h("p", {}, VT.h("b", {}, `step ${VT.count(mark.step)} `), mark.text));
  if (told.length > MOST_TOLD) lines.push(VT.h("p", {}, `and ${told.length - MOST_TOLD} more: see the events below`));
  this.note.replaceChildren(...lines);
  const room = this.place.clientWidth, over = u.over.offsetLeft + left;
  this.note.style.left = `${Math.max(0, Math.min(over - this.note.offsetWidth / 2, room - this.note.offsetWidth))}px`;
  if (this.element === document.activeElement) this.values.append(VT.h("span", { class: "hidden" }, told.map((mark) => mark.text).join("; ")));
};

VT.Chart.prototype.drawMarks = function (u) {
  const context = u.ctx, { left, top, width, height } = u.bbox, ratio = devicePixelRatio;
  context.save();
  context.beginPath();
  context.rect(left, top, width, height);
  context.clip();
  const level = (value, color, dash) => {
    const y = u.valToPos(value, "y", true);
    VT.stroke(context, [[left, y], [left + width, y]], color, dash);
  };
  if (this.options.floor !== undefined && this.options.floor !== null) level(this.options.floor, VT.css("--text"), [2, 3]);
  for (const reference of this.options.references?.() ?? []) level(reference.value, VT.css("--muted"), reference.dash);
  const drawn = new Set();
  for (const mark of this.marks()) {
    const x = Math.round(u.valToPos(mark.x, "x", true)), color = VT.css(mark.color), place = `${x} ${mark.color}`;
    if (x < left || x > left + width || drawn.has(place)) continue;
    drawn.add(place);
    VT.stroke(context, [[x, top], [x, top + height]], color, mark.dash ?? [4, 4]);
    context.fillStyle = color;
    context.beginPath();
    [[x - 5 * ratio, top], [x + 5 * ratio, top], [x, top + 7 * ratio]].forEach(([px, py], i) => (i ? context.lineTo(px, py) : context.moveTo(px, py)));
    context.fill();
  }
  context.fillStyle = VT.css("--bad");
  context.font = `${12 * ratio}px system-ui`;
  for (const line of this.lines) for (const step of line.bad ?? []) {
    const near = line.axis.step.findIndex((one) => one >= step);
    const t_ms = line.axis.t_ms[near < 0 ? line.axis.t_ms.length - 1 : near] ?? line.run.started_ms;
    const x = u.valToPos(VT.xValues({ step: [step], t_ms: [t_ms] }, line.run)[0], "x", true);
    context.fillText("×", x - 4, top + 12 * ratio);
  }
  context.restore();
};

VT.stroke = (context, points, color, dash) => {
  context.strokeStyle = color;
  context.lineWidth = devicePixelRatio;
  context.setLineDash(dash.map((length) => length * devicePixelRatio));
  context.beginPath();
  points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
  context.stroke();
};
