"use strict";
/* The table of all runs. It is filled once and then kept true by the stream of changes. */
(() => {
  const main = document.getElementById("main");
  const rows = new Map(), elements = new Map(), chosen = new Set(), sparks = new Map();
  let sort = { key: "started_ms", up: false }, filter = { text: "", status: "", experiment: "" }, info = {};
  const SPARKS = [["train_closs", "closs"], ["train_loss_ct", "loss_ct"], ["train_z_loss", "z_loss"], ["train_loss", "loss"]];
  const loss = (name) => (row) => (typeof row.losses[name] === "number" ? row.losses[name] : null);
  const COLUMNS = [
    { key: "name", label: "run", of: (row) => row.name, text: true },
    { key: "status", label: "status", of: (row) => row.status, text: true },
    { key: "health", label: "health", of: (row) => -(row.findings.length + 100 * (row.status === "UNREADABLE")) },
    { key: "progress", label: "progress", of: (row) => (row.total_steps ? row.step / row.total_steps : null) },
    { key: "eta_s", label: "left", of: (row) => row.eta_s, n: true },
    { key: "train_loss", label: "train loss", of: loss("train_loss"), n: true, lower: true },
    { key: "val_ind_closs", label: "val_ind closs", of: loss("val_ind_closs"), n: true, lower: true },
    { key: "val_ind_loss_ct", label: "val_ind loss_ct", of: loss("val_ind_loss_ct"), n: true, lower: true },
    { key: "val_ood_loss_ct", label: "val_ood loss_ct", of: loss("val_ood_loss_ct"), n: true, lower: true },
    { key: "sparks", label: "closs, ct, z, loss", of: () => null },
    { key: "undelivered", label: "not delivered", of: (row) => Object.values(row.undelivered).reduce((a, b) => a + b, 0) },
    { key: "started_ms", label: "started", of: (row) => row.started_ms ?? 0, n: true },
  ];

  const body = VT.h("tbody"), count = VT.h("span", { class: "muted", role: "status" });
  const compare = VT.h("button", { type: "button", disabled: true, onclick: openComparison }, "compare");
  const experiments = VT.h("select", { "aria-label": "experiment", onchange: (e) => refilter("experiment", e.target.value) });
  const search = VT.h("input", { type: "search", placeholder: "search  ( / )", "aria-label": "search runs", oninput: (e) => refilter("text", e.target.value.toLowerCase()) });

  function build() {
    const statuses = ["", "RUNNING", "FINISHED", "FAILED", "KILLED", "UNREADABLE"];
    const status = VT.h("select", { "aria-label": "status", onchange: (e) => refilter("status", e.target.value) },
      statuses.map((one) => VT.h("option", { value: one }, one ? one.toLowerCase() : "any status")));
    const heads = COLUMNS.map((column) => VT.h("th", { scope: "col", class: column.n ? "n" : null, "data-key": column.key },
      column.key === "sparks" ? column.label
        : VT.h("button", { type: "button", onclick: () => sortBy(column) }, column.label)));
    main.replaceChildren(
      VT.h("h1", {}, "Runs"),
      VT.h("div", { class: "filters" }, search, experiments, status, compare, count),
      VT.h("div", { class: "scroll" }, VT.h("table", { class: "list" },
        VT.h("thead", {}, VT.h("tr", {}, VT.h("th", { scope: "col" }, VT.h("span", { class: "muted" }, "✓")), heads)), body)));
    document.getElementById("right").append(...[
      info.mlflow ? VT.h("a", { href: "/mlflow" }, "MLflow") : null, VT.themeButton()].filter(Boolean));
  }

  function sortBy(column) {
    sort = { key: column.key, up: sort.key === column.key ? !sort.up : Boolean(column.text || column.lower) };
    order();
  }

  function refilter(key, value) { filter[key] = value; order(); }

  function shown() {
    const column = COLUMNS.find((one) => one.key === sort.key);
    const found = [...rows.values()].filter((row) =>
      (!filter.status || row.status === filter.status) && (!filter.experiment || row.experiment === filter.experiment)
      && (!filter.text || `${row.id} ${row.name} ${row.overrides ?? ""} ${row.group ?? ""}`.toLowerCase().includes(filter.text)));
    const compareValues = (a, b) => {
      const [x, y] = [column.of(a), column.of(b)];
      if (x === null || y === null) return (x === null) - (y === null); /* unknown ones stay at the end */
      const way = typeof x === "string" ? x.localeCompare(y) : x - y;
      return sort.up ? way : -way;
    };
    return found.sort((a, b) => compareValues(a, b) || (a.id < b.id ? 1 : -1));
  }

  function order() {
    const found = shown();
    body.replaceChildren(...found.map((row) => elements.get(row.id)));
    const left = info.complete ? "" : ", reading more …";
    count.textContent = `${VT.count(found.length)} of ${VT.count(rows.size)} runs${left}`;
    for (const head of document.querySelectorAll("th[data-key]"))
      head.setAttribute("aria-sort", head.dataset.key === sort.key ? (sort.up ? "ascending" : "descending") : "none");
    for (const column of COLUMNS.filter((one) => one.lower)) {
      const best = Math.min(...found.map((row) => column.of(row)).filter((value) => value !== null));
      for (const row of found) {
        const cell = elements.get(row.id).querySelector(`[data-column="${column.key}"]`);
        const isBest = found.length > 1 && column.of(row) === best;
        cell.classList.toggle("best", isBest);
        cell.title = isBest ? "lowest of those shown" : "";
      }
    }
  }

  function element(row) {
    const box = VT.h("input", {
      type: "checkbox", "aria-label": `choose ${row.id}`, checked: chosen.has(row.id),
      onchange: (e) => { e.target.checked ? chosen.add(row.id) : chosen.delete(row.id); showChosen(); },
    });
    const name = VT.h("td", { class: "name" },
      VT.h("a", { href: `/run/${VT.runPath(row.id)}` }, row.name),
      VT.h("span", { class: "sub" }, row.name.includes(row.id.split("/")[1]) ? row.experiment : row.id, row.host ? ` · on ${row.host}` : ""),
      row.reason ? VT.h("span", { class: "sub" }, row.reason) : null);
    const cells = COLUMNS.slice(1).map((column) => {
      const content = {
        status: () => VT.status(row.status), health: () => VT.health(row), progress: () => (row.step === null ? null : VT.progress(row)),
        eta_s: () => (row.eta_s === null ? null : VT.duration(row.eta_s)), undelivered: () => VT.undelivered(row) || null,
        started_ms: () => (row.started_ms ? VT.h("span", { title: VT.time(row.started_ms) }, VT.ago(row.started_ms)) : null),
        sparks: () => sparkCanvas(row),
      }[column.key];
      const made = content ? content() : (row.losses[column.key] === undefined ? null : VT.number(row.losses[column.key]));
      return VT.h("td", { class: column.n ? "n" : null, "data-label": column.label, "data-column": column.key }, made);
    });
    return VT.h("tr", { "data-run": row.id }, VT.h("td", { class: "check" }, box), name, cells);
  }

  function take(changed) {
    for (const row of changed) {
      rows.set(row.id, row);
      const made = element(row), old = elements.get(row.id);
      if (old?.isConnected) old.replaceWith(made);
      elements.set(row.id, made);
    }
    const names = [...new Set([...rows.values()].map((row) => row.experiment))].sort();
    if (names.length + 1 !== experiments.options.length)
      experiments.replaceChildren(VT.h("option", { value: "" }, "any experiment"),
        ...names.map((name) => VT.h("option", { value: name, selected: name === filter.experiment }, name)));
  }

  /* --- sparklines: asked for when a row is on the screen ----------------------------------------- */

  const wanted = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) ask(entry.target.dataset.run);
  }, { rootMargin: "300px" });

  function sparkCanvas(row) {
    if (row.step === null) return null;
    const canvas = VT.h("canvas", { class: "spark", width: 288, height: 44, "data-run": row.id, "aria-hidden": "true",
      style: { width: "144px" } });
    watcher.observe(canvas);
    const known = sparks.get(row.id);
    if (known) paint(canvas, known.lines);
    return canvas;
  }

  function ask(id) {
    const known = sparks.get(id), row = rows.get(id);
    if (!row || (known && known.step === row.step)) return;
    if (!wanted.size) setTimeout(fetchSparks, 60);
    wanted.add(id);
  }

  async function fetchSparks() {
    const ids = [...wanted].slice(0, 25);
    ids.forEach((id) => wanted.delete(id));
    if (wanted.size) setTimeout(fetchSparks, 0);
    const found = await VT.fetchJson(`/api/sparks?${ids.map((id) => `run=${encodeURIComponent(id)}`).join("&")}`).catch(() => ({}));
    for (const [id, lines] of Object.entries(found)) {
      sparks.set(id, { step: rows.get(id)?.step, lines });
      const canvas = elements.get(id)?.querySelector("canvas");
      if (canvas) paint(canvas, lines);
    }
  }

  function paint(canvas, lines) {
    const context = canvas.getContext("2d"), width = canvas.width / SPARKS.length, height = canvas.height;
    context.clearRect(0, 0, canvas.width, height);
    context.strokeStyle = VT.css("--accent");
    context.lineWidth = 2;
    SPARKS.forEach(([name], number) => {
      const points = lines[name] ?? [];
      const values = points.map((point) => point[1]), steps = points.map((point) => point[0]);
      const low = Math.min(...values), high = Math.max(...values), first = Math.min(...steps), last = Math.max(...steps);
      context.beginPath();
      points.forEach(([step, value], i) => {
        const x = number * width + 3 + ((step - first) / (last - first || 1)) * (width - 8);
        const y = height - 3 - ((value - low) / (high - low || 1)) * (height - 6);
        if (i) context.lineTo(x, y); else context.moveTo(x, y);
      });
      context.stroke();
    });
  }

  VT.themeListeners.push(() => { for (const [id, { lines }] of sparks) { const c = elements.get(id)?.querySelector("canvas"); if (c) paint(c, lines); } });

  /* --- comparison --------------------------------------------------------------------------------- */

  function showChosen() {
    compare.disabled = chosen.size < 2 || chosen.size > 20;
    compare.textContent = chosen.size ? `compare ${chosen.size}` : "compare";
  }

  function openComparison() {
    location.href = `/compare?${[...chosen].map((id) => `run=${encodeURIComponent(id)}`).join("&")}`;
  }

  addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== search) { event.preventDefault(); search.focus(); }
  });

  /* --- start ---------------------------------------------------------------------------------------- */

  let isOrdering = false;
  function orderSoon() {
    if (isOrdering) return;
    isOrdering = true;
    setTimeout(() => { isOrdering = false; order(); }, 150);
  }

  async function begin() {
    info = await VT.fetchJson("/api/runs");
    document.title = "runs · vlatrack";
    document.getElementById("place").textContent = info.runs;
    build();
    take(info.rows);
    order();
    if (info.problem) main.prepend(VT.h("p", { class: "problem", role: "alert" }, info.problem));
    let version = info.version;
    VT.listen(`/api/changes?after=${version}`, (change) => {
      info.complete = change.complete;
      take(change.rows);
      for (const id of change.gone) { rows.delete(id); elements.get(id)?.remove(); elements.delete(id); chosen.delete(id); }
      for (const row of change.rows) if (elements.get(row.id)?.isConnected && sparks.has(row.id)) ask(row.id);
      orderSoon();
    });
    setInterval(orderSoon, 60_000); /* "3 min ago" */
  }
  begin().catch((error) => VT.failed(main, error));
})();
