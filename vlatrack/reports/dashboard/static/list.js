"use strict";
/* The table of all runs. It is filled once and then kept true by the stream of changes. */
(() => {
  const main = document.getElementById("main");
  const rows = new Map(), elements = new Map(), chosen = new Set();
  const asked = new URLSearchParams(location.search), FILTERS = ["text", "status", "experiment", "group"];
  const filter = Object.fromEntries(FILTERS.map((key) => [key, asked.get(key) ?? ""]));
  const sparks = new VT.Sparks((id) => rows.get(id), (id) => elements.get(id)?.querySelector("canvas"));
  let info = {}, sort = { key: "started_ms", up: false };
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

  if (COLUMNS.some((column) => column.key === asked.get("sort")))
    sort = { key: asked.get("sort"), up: asked.get("order") === "up" };

  const problem = VT.h("p", { class: "problem", role: "alert", hidden: true });
  const empty = VT.h("p", { class: "muted", hidden: true });
  const body = VT.h("tbody"), count = VT.h("span", { class: "muted", role: "status" });
  const compare = VT.h("button", { type: "button", disabled: true, onclick: openComparison }, "compare");
  const choice = (key, label) => VT.h("select", { "aria-label": label, onchange: (e) => refilter(key, e.target.value) });
  const experiments = choice("experiment", "experiment"), groups = choice("group", "group"), statuses = choice("status", "status");
  const search = VT.h("input", { type: "search", placeholder: "search  ( / )", "aria-label": "search runs", value: filter.text,
    oninput: (e) => refilter("text", e.target.value) });

  function build() {
    fill(statuses, "status", "any status", ["RUNNING", "FINISHED", "FAILED", "KILLED", "UNREADABLE"], (one) => one.toLowerCase());
    const heads = COLUMNS.map((column) => VT.h("th", { scope: "col", class: column.n ? "n" : null, "data-key": column.key },
      column.key === "sparks" ? column.label
        : VT.h("button", { type: "button", onclick: () => sortBy(column) }, column.label)));
    main.replaceChildren(
      VT.h("h1", {}, "Runs"),
      VT.h("div", { class: "filters" }, search, experiments, groups, statuses, compare, count),
      VT.h("div", { class: "scroll" }, VT.h("table", { class: "list" },
        VT.h("thead", {}, VT.h("tr", {}, VT.h("th", { scope: "col" }, VT.h("span", { class: "muted" }, "✓")), heads)), body)), empty, problem);
    document.getElementById("right").append(...[
      info.mlflow ? VT.h("a", { href: "/mlflow" }, "MLflow") : null, VT.themeButton()].filter(Boolean));
  }

  /* The choices of a filter: those that there are, and the one that is chosen even if no run has it (any more). */
  function fill(select, key, any, values, shown = (value) => value) {
    const all = [...new Set([...values, filter[key]].filter(Boolean))];
    select.hidden = !all.length;
    if (all.length + 1 === select.options.length) return;
    select.replaceChildren(VT.h("option", { value: "" }, any),
      ...all.map((value) => VT.h("option", { value, selected: value === filter[key] }, shown(value))));
  }

  /* What is shown stands in the address: it can be shared, and is there again on the way back from a run. */
  function remember() {
    const isUsual = sort.key === "started_ms" && !sort.up;
    VT.setQuery({ ...filter, sort: isUsual ? null : sort.key, order: isUsual || !sort.up ? null : "up" });
  }

  function sortBy(column) {
    sort = { key: column.key, up: sort.key === column.key ? !sort.up : Boolean(column.text || column.lower) };
    remember();
    order();
  }

  function refilter(key, value) { filter[key] = value; remember(); order(); }

  function onlyGroup(group) {
    filter.group = group;
    groups.value = group;
    refilter("group", group);
  }

  function shown() {
    const column = COLUMNS.find((one) => one.key === sort.key), words = filter.text.toLowerCase().split(/\s+/).filter(Boolean);
    const found = [...rows.values()].filter((row) =>
      (!filter.status || row.status === filter.status) && (!filter.experiment || row.experiment === filter.experiment)
      && (!filter.group || row.group === filter.group)
      && words.every((word) => `${row.id} ${row.name} ${row.overrides ?? ""} ${row.group ?? ""} ${row.host ?? ""}`.toLowerCase().includes(word)));
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
    empty.hidden = found.length > 0 || !info.complete;
    empty.textContent = rows.size ? "No run is like that; change the search or the filters." : "There is no run yet. It appears here as soon as one begins below this folder.";
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
      VT.h("span", { class: "sub" }, row.name.includes(row.id.split("/")[1]) ? row.experiment : row.id, row.host ? ` · on ${row.host}` : "",
        row.imported_from ? " · imported" : "",
        row.group ? [" · ", VT.h("button", { class: "plain link", type: "button", title: "only this group", onclick: () => onlyGroup(row.group) }, row.group)] : null),
      row.reason ? VT.h("span", { class: "sub" }, row.reason) : null);
    const cells = COLUMNS.slice(1).map((column) => {
      const content = {
        status: () => VT.status(row.status), health: () => VT.health(row), progress: () => (row.step === null ? null : VT.progress(row)),
        eta_s: () => (row.eta_s === null ? null : VT.duration(row.eta_s)), undelivered: () => VT.undelivered(row) || null,
        started_ms: () => (row.started_ms ? VT.h("span", { title: VT.time(row.started_ms) }, VT.ago(row.started_ms)) : null),
        sparks: () => sparks.canvas(row),
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
    const values = (key) => [...new Set([...rows.values()].map((row) => row[key]).filter(Boolean))].sort();
    fill(experiments, "experiment", "any experiment", values("experiment"));
    fill(groups, "group", "any group", values("group"));
  }

  /* --- comparison --------------------------------------------------------------------------------- */

  function showChosen() {
    compare.disabled = chosen.size < 2 || chosen.size > 20;
    compare.textContent = chosen.size ? `compare ${chosen.size}` : "compare";
  }

  function openComparison() {
    location.href = `/compare?${[...chosen].map((id) => `run=${encodeURIComponent(id)}`).join("&")}`;
  }

  /* --- keys: / searches, arrows go from run to run, x chooses one, c compares -------------------------- */

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const isTyping = document.activeElement === search, row = document.activeElement.closest?.("tr[data-run]");
    const actions = {
      "/": () => search.focus(), c: () => compare.click(), x: () => row?.querySelector("input").click(),
      ArrowDown: () => (row ? row.nextElementSibling : body.firstElementChild)?.querySelector("a").focus(),
      ArrowUp: () => (row ? row.previousElementSibling?.querySelector("a") ?? search : null)?.focus(),
    };
    const isFor = isTyping ? event.key === "ArrowDown" : event.key === "/" || event.key === "c" || (row && event.key in actions);
    if (!isFor || ["SELECT", "TEXTAREA"].includes(document.activeElement.tagName)) return;
    event.preventDefault();
    actions[event.key]();
  });

  /* --- start ---------------------------------------------------------------------------------------- */

  let isOrdering = false;
  function orderSoon() {
    if (isOrdering) return;
    isOrdering = true;
    setTimeout(() => { isOrdering = false; order(); }, 150);
  }

  function show(found) {
    info = found;
    take(info.rows);
    problem.hidden = !info.problem;
    problem.textContent = info.problem ?? "";
    order();
  }

  /* Everything anew, as of a server that was started again: what it does not find is gone. */
  async function reread() {
    const found = await VT.fetchJson("/api/runs").catch(() => null);
    if (!found?.complete) { setTimeout(reread, 1000); return; }
    const ids = new Set(found.rows.map((row) => row.id));
    forget([...rows.keys()].filter((id) => !ids.has(id)));
    show(found);
  }

  function forget(ids) {
    for (const id of ids) { rows.delete(id); elements.get(id)?.remove(); elements.delete(id); chosen.delete(id); }
    showChosen();
  }

  async function begin() {
    const found = await VT.fetchJson("/api/runs");
    info = found;
    document.title = "runs · vlatrack";
    document.getElementById("place").textContent = info.runs;
    build();
    show(found);
    VT.listen("/api/changes", info.mark, (change) => {
      info.complete = change.complete;
      take(change.rows);
      forget(change.gone);
      for (const row of change.rows) if (elements.get(row.id)?.isConnected) sparks.ask(row.id);
      orderSoon();
    }, reread);
    setInterval(orderSoon, 60_000); /* "3 min ago" */
  }
  begin().catch((error) => VT.failed(main, error));
})();
