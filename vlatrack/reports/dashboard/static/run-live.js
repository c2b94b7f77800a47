"use strict";
/* The page of one run, kept true while the run goes on. */
(() => {
  const main = document.getElementById("main");
  const id = location.pathname.split("/").slice(2).map(decodeURIComponent).join("/");
  const path = VT.runPath(id);
  let page, settled = 0, isFetching = false, isDue = false, events = 0;

  const known = () => Math.max(0, ...page.content.lines.axes.map((axis) => axis.step[axis.step.length - 1] ?? 0));

  /* New points take the place of those from `since` on. */
  function merge(fresh, since) {
    const lines = page.content.lines;
    for (const [name, line] of Object.entries(fresh.lines)) {
      const axis = fresh.axes[line.axis], old = lines.lines[name];
      const before = old ? lines.axes[old.axis] : { step: [], t_ms: [] };
      let keep = before.step.findIndex((step) => step >= since);
      if (keep < 0) keep = before.step.length;
      const merged = { step: [...before.step.slice(0, keep), ...axis.step], t_ms: [...before.t_ms.slice(0, keep), ...axis.t_ms] };
      lines.axes.push(merged);
      lines.lines[name] = { axis: lines.axes.length - 1, values: [...(old?.values.slice(0, keep) ?? []), ...line.values],
        bad: [...new Set([...(old?.bad ?? []), ...(line.bad ?? [])])], bad_count: line.bad_count ?? old?.bad_count };
    }
    const used = [...new Set(Object.values(lines.lines).map((line) => line.axis))];
    const place = new Map(used.map((number, i) => [number, i]));
    lines.axes = used.map((number) => lines.axes[number]);
    for (const line of Object.values(lines.lines)) line.axis = place.get(line.axis);
  }

  async function refresh() {
    if (isFetching) { isDue = true; return; }
    isFetching = true;
    try {
      const since = Math.min(settled ?? Infinity, known());
      const fresh = await VT.fetchJson(`/api/run/${path}/lines?since=${since}`);
      const hasNew = Object.keys(fresh.lines.lines).some((name) => !page.content.lines.lines[name]);
      if (hasNew || fresh.events !== events || page.content.lines.axes.some((axis) => axis.step.length > 6000)) await load();
      else {
        merge(fresh.lines, since);
        settled = fresh.lines.settled;
        page.content.row = fresh.row;
        page.showHead();
        page.findings();
        for (const chart of VT.view.charts) { chart.isOld = true; chart.update(); }
      }
    } catch { /* the stream says whether the server is there */ }
    finally {
      isFetching = false;
      if (isDue) { isDue = false; setTimeout(refresh, 700); }
    }
  }

  async function load() {
    const content = await VT.fetchJson(`/api/run/${path}`);
    settled = content.lines.settled;
    events = content.events.length;
    const top = scrollY, open = [...document.querySelectorAll("details[open]")].map((d) => d.closest("section")?.id);
    VT.filesAt = `/files/${path}/`;
    VT.view.charts.clear();
    page = new VT.RunPage(main, content);
    for (const section of open) document.querySelector(`#${section} details`)?.setAttribute("open", "");
    document.getElementById("place").textContent = content.row.experiment;
    document.title = `${content.row.name} · vlatrack`;
    scrollTo(0, top);
    VT.noteUnread(main, [content.read], load);
    return content;
  }

  async function begin() {
    const content = await load();
    const right = document.getElementById("right");
    if (content.mlflow) right.append(VT.h("a", { href: `/mlflow?experiment=${encodeURIComponent(content.row.experiment)}` }, "MLflow"));
    right.append(VT.themeButton());
    let first = true;
    VT.listen(`/api/changes?run=${encodeURIComponent(id)}`, (change) => {
      if (change.rows.length && !first) refresh();
      first = false;
      if (change.gone.includes(id)) VT.failed(main, new Error(`${id} is not in this runs folder any more`));
    });
  }
  begin().catch((error) => VT.failed(main, error));
})();
