"use strict";
/* Some runs over each other: their lines in the same charts, the settings in which they differ, their best values. */
(() => {
  const main = document.getElementById("main");
  const ids = new URLSearchParams(location.search).getAll("run");
  let content;

  const runOf = (entry) => {
    const epoch = entry.lines.lines.epoch;
    const table = epoch ? [entry.lines.axes[epoch.axis].step, epoch.values] : [[], []];
    return { started_ms: entry.row.started_ms ?? 0, batch_size: entry.batch_size ?? 1, epochs: table };
  };

  function lines(metric) {
    return content.runs.map((entry, number) => {
      const line = entry.lines.lines[metric];
      if (!line) return null;
      return { ...VT.runStyle(number), label: labels[number], key: metric, axis: entry.lines.axes[line.axis], values: line.values,
        bad: line.bad, bad_count: line.bad_count, run: runOf(entry) };
    }).filter(Boolean);
  }

  let labels = [];
  const letter = (number) => String.fromCharCode(65 + number);

  function legend() {
    return VT.h("ul", { class: "legend-list" }, content.runs.map((entry, number) => {
      const style = VT.runStyle(number);
      return VT.h("li", {}, VT.h("span", { class: style.dash ? "swatch dashed" : "swatch", style: { borderColor: style.color } }),
        VT.h("b", {}, `${letter(number)} `), VT.h("a", { href: `/run/${VT.runPath(entry.row.id)}` }, entry.row.name), " ",
        VT.h("span", { class: "muted" }, entry.row.id), " ", VT.status(entry.row.status), " ", VT.health(entry.row));
    }));
  }

  function differences() {
    const shown = (value) => (value === undefined || value === null ? "null" : typeof value === "object" ? JSON.stringify(value) : String(value));
    if (!content.differences.length) return VT.h("p", {}, "the settings are the same");
    return VT.h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "settings" }, VT.h("table", { class: "plain-table" },
      VT.h("thead", {}, VT.h("tr", {}, VT.h("th", { scope: "col" }, "setting"), labels.map((label) => VT.h("th", { scope: "col" }, label)))),
      VT.h("tbody", {}, content.differences.map((one) => VT.h("tr", {}, VT.h("th", { scope: "row" }, one.path, one.decides ? null : VT.h("span", { class: "muted" }, " does not decide the result")),
        one.values.map((value) => VT.h("td", {}, shown(value))))))));
  }

  function best() {
    const body = content.best.map((entry) => {
      const values = entry.cells.map((cell) => cell?.best?.value ?? null);
      const known = values.filter((value) => value !== null);
      const winner = entry.direction === "higher" ? Math.max(...known) : Math.min(...known);
      return VT.h("tr", {}, VT.h("th", { scope: "row" }, entry.metric, VT.h("span", { class: "muted" }, ` ${entry.direction} is better`)),
        entry.cells.map((cell, i) => VT.h("td", { class: values[i] === winner ? "n best" : "n" },
          cell?.best ? `${values[i] === winner ? "★ " : ""}${VT.number(cell.best.value)} (step ${VT.count(cell.best.step)})` : "–")));
    });
    return VT.h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "best values" }, VT.h("table", { class: "plain-table" },
      VT.h("thead", {}, VT.h("tr", {}, VT.h("th", { scope: "col" }, "best of"), labels.map((label) => VT.h("th", { scope: "col", class: "n" }, label)))),
      VT.h("tbody", {}, body)));
  }

  function charts() {
    return content.groups.map((group) => VT.h("section", {}, VT.h("h2", {}, group.caption), VT.h("div", { class: "grid" },
      group.charts.flatMap((chart) => Object.values(chart.lines).map((metric) => new VT.Chart({
        title: metric, unit: chart.unit, direction: chart.direction, fromZero: chart.from_zero, hint: metric, lines: () => lines(metric),
      }).element)))));
  }

  async function load() {
    if (ids.length < 2) throw new Error("choose two runs or more in the list of runs, up to 20");
    content = await VT.fetchJson(`/api/compare?${ids.map((id) => `run=${encodeURIComponent(id)}`).join("&")}`);
    labels = content.runs.map((_, number) => letter(number));
    document.getElementById("place").textContent = `${content.runs.length} runs`;
    VT.view.charts.clear();
    main.replaceChildren(VT.h("h1", {}, "Comparison"), legend(),
      VT.h("h2", {}, "Settings that differ"), differences(), VT.h("h2", {}, "Best values"), best(),
      VT.h("div", { class: "sticky" }, VT.viewControls(["step", "epoch", "time", "samples"])), ...charts());
    VT.noteUnread(main, content.runs.map((entry) => entry.read), load);
  }

  async function begin() {
    document.title = "comparison · vlatrack";
    document.getElementById("right").append(VT.themeButton());
    const connection = document.getElementById("connection");
    connection.replaceChildren(VT.h("button", { type: "button", onclick: () => load().catch((error) => VT.failed(main, error)) }, "read again"));
    await load();
  }
  begin().catch((error) => VT.failed(main, error));
})();
