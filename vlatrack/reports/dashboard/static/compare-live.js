"use strict";
/* The comparison, kept true while its runs go on. */
(() => {
  const main = document.getElementById("main");
  const ids = [...new Set(new URLSearchParams(location.search).getAll("run"))];
  const due = new Set();
  let page, isFetching = false;
  VT.isLive = true;
  VT.view.details = async (id, low, high) => (await VT.fetchJson(`/api/run/${VT.runPath(id)}/zoom?from=${low}&to=${high}`)).lines;
  VT.view.sources = () => page.content.runs.map((entry) => ({ run: page.runOf(entry), axes: entry.lines.axes }));

  async function load() {
    if (ids.length < 2 || ids.length > 20) throw new Error("choose two runs or more in the list of runs, up to 20");
    const content = await VT.fetchJson(`/api/compare?${ids.map((id) => `run=${encodeURIComponent(id)}`).join("&")}`);
    VT.forgetCharts();
    page = new VT.ComparePage(main, content);
    document.getElementById("place").textContent = `${content.runs.length} runs`;
    VT.noteUnread(main, content.runs.map((entry) => entry.read), load);
    VT.refine();
  }

  /* The new points of the runs that changed, one run after the other. */
  async function refresh() {
    if (isFetching || !due.size) return;
    isFetching = true;
    const now = [...due];
    due.clear();
    try {
      for (const entry of page.content.runs.filter((one) => now.includes(one.row.id))) {
        const since = VT.sinceOf(entry.lines);
        const fresh = await VT.fetchJson(`/api/run/${VT.runPath(entry.row.id)}/lines?since=${since}`);
        VT.mergeLines(entry.lines, fresh.lines, since);
        entry.row = fresh.row;
      }
      page.showHead();
      VT.redraw();
      VT.refineIfOpen();
    } catch { /* the stream says whether the server is there */ }
    finally {
      isFetching = false;
      if (due.size) setTimeout(refresh, 2000);
    }
  }

  async function begin() {
    document.title = "comparison · vlatrack";
    document.getElementById("right").append(VT.themeButton());
    await load();
    const again = () => load().catch((error) => VT.failed(main, error));
    VT.listen(`/api/changes?${ids.map((id) => `run=${encodeURIComponent(id)}`).join("&")}`, null, (change) => {
      if (change.gone.some((id) => ids.includes(id))) { again(); return; }
      for (const row of change.rows) due.add(row.id);
      refresh();
    }, again);
  }
  begin().catch((error) => VT.failed(main, error));
})();
