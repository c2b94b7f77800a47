"use strict";
/* Some runs over each other: their lines in the same charts, the settings in which they differ, their best values. */

VT.ComparePage = class {
  constructor(root, content) {
    this.content = content;
    this.labels = content.runs.map((_, number) => String.fromCharCode(65 + number));
    this.headElement = VT.h("div", {});
    this.showHead();
    root.replaceChildren(VT.h("h1", {}, "Comparison"), this.headElement,
      VT.h("h2", {}, "Settings that differ"), this.differences(), VT.h("h2", {}, "Best values"), this.best(),
      VT.h("div", { class: "sticky" }, VT.viewControls(content.runs.map((entry) => this.runOf(entry)))), ...this.charts());
  }

  runOf(entry) {
    return VT.runOf(entry.row, entry.lines, entry.batch_size);
  }

  linesOf(metric) {
    return this.content.runs.map((entry, number) => {
      const line = entry.lines.lines[metric], run = this.runOf(entry);
      if (!line || !VT.knowsX(run, VT.view.x)) return null;
      return { ...VT.runStyle(number), label: this.labels[number], key: metric, axis: entry.lines.axes[line.axis],
        values: line.values, bad: line.bad, bad_count: line.bad_count, run };
    }).filter(Boolean);
  }

  showHead() {
    const name = (row) => (VT.isLive ? VT.h("a", { href: `/run/${VT.runPath(row.id)}` }, row.name) : row.name);
    this.headElement.replaceChildren(VT.h("ul", { class: "legend-list" }, this.content.runs.map(({ row }, number) => {
      const style = VT.runStyle(number);
      return VT.h("li", {}, VT.swatch(style.color, style.dash), VT.h("b", {}, `${this.labels[number]} `), name(row), " ",
        VT.h("span", { class: "muted" }, row.id), " ", VT.status(row.status), " ", VT.health(row));
    })));
  }

  table(label, head, rows) {
    return VT.h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, VT.h("table", { class: "plain-table" },
      VT.h("thead", {}, VT.h("tr", {}, head.map((text, i) => VT.h("th", { scope: "col", class: i && label === "best values" ? "n" : null }, text)))),
      VT.h("tbody", {}, rows)));
  }

  differences() {
    const shown = (value) => (value === undefined || value === null ? "null" : typeof value === "object" ? JSON.stringify(value) : String(value));
    if (!this.content.differences.length) return VT.h("p", {}, "the settings are the same");
    return this.table("settings", ["setting", ...this.labels], this.content.differences.map((one) => VT.h("tr", {},
      VT.h("th", { scope: "row" }, one.path, one.decides ? null : VT.h("span", { class: "muted" }, " does not decide the result")),
      one.values.map((value) => VT.h("td", {}, shown(value))))));
  }

  best() {
    if (!this.content.best.length) return VT.h("p", {}, "none of these runs has logged a documented metric");
    const body = this.content.best.map((entry) => {
      const values = entry.cells.map((cell) => cell?.best?.value ?? null);
      const known = values.filter((value) => value !== null);
      const winner = entry.direction === "higher" ? Math.max(...known) : Math.min(...known);
      return VT.h("tr", {}, VT.h("th", { scope: "row" }, entry.metric, VT.h("span", { class: "muted" }, ` ${entry.direction} is better`)),
        entry.cells.map((cell, i) => VT.h("td", { class: values[i] === winner ? "n best" : "n" },
          cell?.best ? `${values[i] === winner ? "★ " : ""}${VT.number(cell.best.value)} (step ${VT.count(cell.best.step)})` : "–")));
    });
    return this.table("best values", ["best of", ...this.labels], body);
  }

  charts() {
    return this.content.groups.map((group) => VT.h("section", {}, VT.h("h2", {}, group.caption), VT.h("div", { class: "grid" },
      group.charts.flatMap((chart) => Object.values(chart.lines).map((metric) => new VT.Chart({
        title: metric, unit: chart.unit, direction: chart.direction, fromZero: chart.from_zero, hint: metric,
        lines: () => this.linesOf(metric),
      }).element)))));
  }
};
