"use strict";
/* The page of one run: the dashboard shows it live, and a report is the same page with its content inside. */

/* What an event says beside its name and step; long values such as digests are cut. */
VT.eventDetails = (event) => {
  if (event.name === "health") return String(event.data.message ?? "");
  const shown = (key, value) => {
    if (key === "t_ms") return VT.time(value);
    return typeof value === "string" && (value.length > 300 || /^[0-9a-f]{40,}$/.test(value)) ? `${value.slice(0, 12)}…` : value;
  };
  return Object.entries(event.data).filter(([key]) => key !== "step").map(([key, value]) => `${key} ${shown(key, value)}`).join(" · ");
};
VT.eventText = (event) => {
  const name = event.name === "health" ? String(event.data.detector ?? "health") : event.name, details = VT.eventDetails(event);
  return `${name.replaceAll("_", " ")}${details ? `: ${details}` : ""}`;
};

VT.RunPage = class {
  constructor(root, content) {
    this.root = root;
    this.content = content;
    this.build();
  }

  /* What steps are in epochs and samples, and which marks the charts have. */
  get run() {
    const { row, params, lines } = this.content;
    return VT.runOf(row, lines, params["train.batch_size"]);
  }

  line(metric, style) {
    const found = this.content.lines.lines[metric];
    if (!found) return null;
    return { ...style, key: metric, axis: this.content.lines.axes[found.axis], values: found.values, bad: found.bad, bad_count: found.bad_count, run: this.run };
  }

  lastOf(metric) {
    const found = metric && this.content.lines.lines[metric];
    return found && found.values.length ? found.values[found.values.length - 1] : null;
  }

  marks() {
    const colors = { health: "--warn", non_finite: "--bad", rollback: "--bad", resume: "--muted", rewound: "--muted", early_stop: "--good" };
    const run = this.run, { best, events } = this.content;
    const found = events.filter((event) => event.step !== null && (colors[event.name] || event.alert)).map((event) => ({
      step: event.step, t_ms: event.t_ms, run, text: VT.eventText(event),
      color: event.data.severity === "critical" || event.alert && !colors[event.name] ? "--bad" : colors[event.name],
    }));
    if (best) found.push({ step: best.step, t_ms: best.t_ms, run, color: "--good", dash: [1, 2],
      text: `best ${best.metric}: ${VT.number(best.value)}${best.epoch ? `, epoch ${best.epoch}` : ""}` });
    return found;
  }

  build() {
    const parts = [
      this.head(), this.findings(), this.summary(),
      ...this.chartGroups(), this.heatMaps(), this.evaluations(), this.events(), this.files(),
      this.text("spec", "Spec", this.content.spec), this.text("manifest", "Manifest", this.content.manifest),
    ].filter(Boolean);
    if (!this.content.groups.length) parts.splice(2, 0, VT.h("p", { class: "muted" }, "no metric has been logged yet"));
    const sections = parts.filter((part) => part.id && part.dataset.title)
      .map((part) => VT.h("a", { href: `#${part.id}` }, part.dataset.title));
    const nav = VT.h("div", { class: "sticky" },
      VT.h("nav", { class: "sections", "aria-label": "sections" }, sections),
      this.content.groups.length ? VT.viewControls([this.run]) : null);
    parts.splice(2, 0, nav);
    this.root.replaceChildren(...parts);
  }

  section(id, title, ...children) {
    return VT.h("section", { id, "data-title": title }, VT.h("h2", {}, title), children);
  }

  head() {
    this.headElement = VT.h("div", {});
    this.showHead();
    return this.headElement;
  }

  showHead() {
    const { row, damaged, events } = this.content;
    const fact = (label, what) => VT.h("div", { class: "fact" }, VT.h("span", { class: "label" }, label), VT.h("span", { class: "what" }, what));
    const epoch = row.epoch === null || row.epoch === undefined ? "–" : `${Number(row.epoch.toFixed(2))}${row.epochs ? ` / ${row.epochs}` : ""}`;
    const lost = VT.undelivered(row);
    this.headElement.replaceChildren(
      VT.h("h1", {}, row.name, " ", VT.status(row.status)),
      VT.h("p", { class: "muted" }, row.id, row.overrides ? ` · ${row.overrides}` : "", row.reason ? ` · ${row.reason}` : ""),
      damaged ? VT.h("p", { class: "note" }, damaged) : "",
      VT.h("div", { class: "facts" },
        fact("progress", VT.progress(row)), fact("epoch", epoch),
        row.status === "RUNNING" ? fact("time left", VT.duration(row.eta_s)) : null,
        row.status !== "RUNNING" && this.run.has_times ? fact("took", VT.duration((this.trainedUntil() - row.started_ms) / 1000)) : null,
        row.imported_from ? fact("imported from", row.imported_from) : null,
        row.status === "RUNNING" ? fact("speed", row.steps_per_s ? `${VT.number(row.steps_per_s)} steps/s` : "–") : null,
        fact("health", VT.health(row)), this.filesAt ? fact("trackers lack", lost || "nothing") : null,
        this.content.best ? fact(`best ${this.content.best.metric}`, `${VT.number(this.content.best.value)} at step ${VT.count(this.content.best.step)}`) : null,
        fact("last record", VT.time(row.updated_ms))));
  }

  /* When the last step was logged: an evaluation may have been added days later. */
  trainedUntil() {
    const { lines, axes } = this.content.lines, trained = Object.keys(lines).filter((name) => name.startsWith("train_"));
    const times = trained.map((name) => axes[lines[name].axis].t_ms).filter((t_ms) => t_ms.length);
    return times.length ? Math.max(...times.map((t_ms) => t_ms[t_ms.length - 1])) : this.content.row.updated_ms;
  }

  findings() {
    const { row } = this.content;
    this.findingsElement ??= VT.h("div", {});
    this.findingsElement.replaceChildren(...(row.findings ?? []).map((finding) =>
      VT.h("div", { class: `finding ${finding.severity}` },
        VT.h("p", {}, VT.h("b", {}, finding.detector.replaceAll("_", " ")), ` · ${finding.metric} · step ${VT.count(finding.step)}`),
        VT.h("p", {}, finding.message), VT.h("p", { class: "muted" }, finding.remedy))));
    return this.findingsElement;
  }

  summary() {
    const { summary } = this.content;
    if (!summary.length) return null;
    const baselines = this.content.references.baselines, baselineSplit = ["val_ind", "val_ood", "train"]
      .find((split) => Object.values(baselines).some((one) => one[split]));
    const seen = [["constant", "constant action"], ["repeat", "last action repeated"]];
    const splits = ["train", "val_ind", "val_ood"].filter((split) => summary.some((entry) => entry.splits[split]));
    const head = VT.h("tr", {}, VT.h("th", { scope: "col" }, "metric"),
      splits.map((split) => VT.h("th", { scope: "col", class: "n" }, `${split}: first → last`)),
      splits.filter((split) => split !== "train").map((split) => VT.h("th", { scope: "col", class: "n" }, `${split}: best (step)`)),
      baselineSplit ? seen.map(([, label]) => VT.h("th", { scope: "col", class: "n", title: "the error of a policy that sees nothing" }, `${label} on ${baselineSplit}`)) : null);
    const change = (cell) => {
      const by = cell.first.value ? (100 * (cell.last.value - cell.first.value)) / Math.abs(cell.first.value) : null;
      return VT.h("span", {}, `${VT.number(cell.first.value)} → `, VT.h("b", {}, VT.number(cell.last.value)),
        by === null ? "" : ` ${by > 0 ? "+" : ""}${by.toFixed(0)}%`,
        cell.bad ? VT.h("span", { class: "bad" }, ` ${VT.count(cell.bad)} not finite`) : null);
    };
    const body = summary.map((entry) => VT.h("tr", {},
      VT.h("th", { scope: "row" }, entry.metric, entry.step === null ? "" : VT.h("span", { class: "muted" }, ` step ${entry.step}`)),
      splits.map((split) => VT.h("td", { class: "n" }, entry.splits[split] ? change(entry.splits[split]) : "–")),
      splits.filter((split) => split !== "train").map((split) => VT.h("td", { class: "n" },
        entry.splits[split]?.best ? `${VT.number(entry.splits[split].best.value)} (${VT.count(entry.splits[split].best.step)})` : "–")),
      baselineSplit ? seen.map(([name]) => VT.h("td", { class: "n" }, VT.number(baselines[entry.metric]?.[baselineSplit]?.[name]))) : null));
    const made = this.section("summary", "Results", VT.h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "results" },
      VT.h("table", { class: "plain-table" }, VT.h("thead", {}, head), VT.h("tbody", {}, body))));
    this.summaryElement?.replaceWith(made);
    this.summaryElement = made;
    return made;
  }

  /* Horizontal lines: what policies that see nothing would get, and where the gradient norm is clipped. */
  referencesOf(chart) {
    const [split, metric] = Object.entries(chart.lines).find(([one]) => one === "val_ind") ?? Object.entries(chart.lines)[0];
    const named = { constant: "constant action", repeat: "last action repeated" };
    const found = this.content.references.baselines[metric.replace(/^(train|val_ind|val_ood)_/, "")]?.[split] ?? {};
    const lines = Object.entries(found).map(([name, value], i) => ({ label: named[name] ?? name, value, dash: i ? [1, 3] : [6, 3] }));
    const clip = this.content.params["optim.clip_grad"];
    if (metric === "train_grad_norm" && typeof clip === "number") lines.push({ label: "clipped above", value: clip, dash: [6, 3] });
    return lines;
  }

  chartGroups() {
    return this.content.groups.map((group) => {
      const metrics = group.charts.flatMap((chart) => Object.values(chart.lines));
      const shared = () => {
        let min = Infinity, max = -Infinity;
        for (const metric of metrics) for (const value of this.content.lines.lines[metric]?.values ?? []) {
          if (value < min) min = value;
          if (value > max) max = value;
        }
        return min > max ? null : { min, max };
      };
      const charts = group.charts.map((chart) => new VT.Chart({
        references: () => this.referencesOf(chart), key: `${group.name}/${chart.title}`,
        title: chart.title, unit: chart.unit, direction: chart.direction, fromZero: chart.from_zero,
        hint: this.content.meanings[Object.values(chart.lines)[0]] ?? "",
        shared: group.shared_scale ? shared : null,
        floor: this.lastOf(chart.floor),
        lines: () => Object.entries(chart.lines).map(([split, metric]) => this.line(metric, VT.splitStyle(split))).filter(Boolean),
        marks: () => this.marks(),
      }).element);
      const title = { losses: "Losses", action_l1: "Token L1 per step", head_l1: "Head L1 per step", accuracy: "Accuracy",
        action_dimensions: "Token L1 per dimension", head_dimensions: "Head L1 per dimension", optimisation: "Optimisation and speed",
        success: "Success", loss_terms: "Loss terms", more: "More", machine: "Machine" }[group.name] ?? group.caption;
      return this.section(group.name, title, VT.h("div", { class: "grid" }, charts));
    });
  }

  heatMaps() {
    const pictures = [];
    for (const [family, label] of [["l1_loss_action", "tokens"], ["l1_loss_head", "continuous head"]]) {
      for (const split of ["train", "val_ind", "val_ood"]) {
        const names = Object.keys(this.content.lines.lines).filter((name) => new RegExp(`^${split}_${family}_\\d+$`).test(name))
          .sort((a, b) => Number(a.match(/\d+$/)) - Number(b.match(/\d+$/)));
        if (names.length < 2) continue;
        const first = this.content.lines.lines[names[0]], axis = this.content.lines.axes[first.axis];
        const values = names.map((name) => {
          const line = this.content.lines.lines[name], steps = this.content.lines.axes[line.axis].step;
          const at = new Map(steps.map((step, i) => [step, line.values[i]]));
          return axis.step.map((step) => at.get(step) ?? null);
        });
        const max = Math.max(...values.flat().filter((value) => value !== null));
        pictures.push(VT.heatPicture({ caption: `${label}, ${split}: chunk step over the training`, rows: names.map((_, i) => `step ${i}`), xs: axis.step, values, max }));
      }
    }
    const dimension = (grid) => grid[0].map((_, d) => this.content.references.names[d] ?? `dim ${d}`);
    const grids = this.content.grids.filter((entry) => entry.grid);
    const max = Math.max(0, ...grids.flatMap((entry) => entry.grid.flat()).filter((value) => value !== null));
    const tables = grids.map((entry) => VT.heatTable({
      caption: `${entry.route}, ${entry.split}, epoch ${entry.epoch}: mean L1`, corner: "chunk step",
      rows: entry.grid.map((_, step) => String(step)), columns: dimension(entry.grid), values: entry.grid, max }));
    if (!pictures.length && !tables.length) return null;
    return this.section("heat", "L1 maps", VT.h("div", { class: "grid" }, pictures), VT.h("div", { class: "grid tables" }, tables));
  }

  events() {
    const began = this.content.row.started_ms;
    const rows = this.content.events.map((event) => {
      return VT.h("tr", {}, VT.h("td", { class: "n" }, event.step === null ? "" : VT.count(event.step)),
        VT.h("td", { class: "n", title: VT.time(event.t_ms) }, began ? VT.duration((event.t_ms - began) / 1000) : VT.time(event.t_ms)),
        VT.h("td", {}, event.name.replaceAll("_", " ")), VT.h("td", {}, VT.eventDetails(event)));
    });
    return this.section("events", "Events", VT.h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "events" },
      VT.h("table", { class: "plain-table" }, VT.h("thead", {}, VT.h("tr", {},
        ["step", "after", "event", "what it says"].map((label) => VT.h("th", { scope: "col" }, label)))), VT.h("tbody", {}, rows))));
  }

  files() {
    if (!this.filesAt) return null;
    const rows = this.content.files.map((file) => VT.h("tr", {},
      VT.h("td", {}, VT.h("a", { href: VT.filePath(file.path) }, file.path)),
      VT.h("td", { class: "n" }, VT.bytes(file.bytes))));
    return this.section("files", "Files", VT.h("details", {}, VT.h("summary", {}, `${rows.length} files`),
      VT.h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "files" }, VT.h("table", { class: "plain-table" }, VT.h("tbody", {}, rows)))));
  }

  text(id, title, text) {
    return text === null ? null : this.section(id, title, VT.h("details", {}, VT.h("summary", {}, "show"), VT.h("pre", { tabindex: 0 }, text)));
  }
};
/* The address of the run's files, if a server is there. */
Object.defineProperty(VT.RunPage.prototype, "filesAt", { get() { return VT.filesAt ?? null; } });
VT.filePath = (path) => VT.filesAt + path.split("/").map(encodeURIComponent).join("/");
