"use strict";
/* The page of one run, kept true while the run goes on. */
(() => {
  const main = document.getElementById("main");
  const id = location.pathname.split("/").slice(2).map(decodeURIComponent).join("/");
  const path = VT.runPath(id);
  let page, isFetching = false, isDue = false, events = 0;
  VT.isLive = true;

  async function refresh() {
    if (isFetching) { isDue = true; return; }
    isFetching = true;
    try {
      const since = VT.sinceOf(page.content.lines);
      const fresh = await VT.fetchJson(`/api/run/${path}/lines?since=${since}`);
      const hasNew = Object.keys(fresh.lines.lines).some((name) => !page.content.lines.lines[name]);
      if (hasNew || fresh.events !== events || page.content.lines.axes.some((axis) => axis.step.length > 6000)) await load();
      else {
        VT.mergeLines(page.content.lines, fresh.lines, since);
        page.content.row = fresh.row;
        page.showHead();
        page.findings();
        VT.redraw();
        VT.refineIfOpen();
      }
    } catch { /* the stream says whether the server is there */ }
    finally {
      isFetching = false;
      if (isDue) { isDue = false; setTimeout(refresh, 700); }
    }
  }

  /* The page is built anew when a run has new metrics or events: who reads it must not lose the place. */
  function placeOf() {
    const top = scrollY, focus = document.activeElement?.dataset.key;
    const folds = () => [...document.querySelectorAll("section")].flatMap((section) =>
      [...section.querySelectorAll("details")].map((fold, i) => [`${section.id} ${i}`, fold]));
    const open = folds().filter(([, fold]) => fold.open).map(([name]) => name);
    const playing = [...document.querySelectorAll("video")].filter((video) => !video.paused).map((video) => [video.src, video.currentTime]);
    const large = [...document.querySelectorAll(".chart.large")].map((one) => one.dataset.key);
    return () => {
      for (const [name, fold] of folds()) fold.open = open.includes(name);
      for (const [src, time] of playing) {
        const video = [...document.querySelectorAll("video")].find((one) => one.src === src);
        if (video) { video.currentTime = time; video.play().catch(() => {}); }
      }
      for (const chart of document.querySelectorAll(".chart")) {
        if (large.includes(chart.dataset.key)) chart.classList.add("large");
        if (focus && chart.dataset.key === focus) chart.focus({ preventScroll: true });
      }
      scrollTo(0, top);
    };
  }

  async function load() {
    const content = await VT.fetchJson(`/api/run/${path}`);
    events = content.events.length;
    const restore = placeOf();
    VT.filesAt = `/files/${path}/`;
    VT.forgetCharts();
    page = new VT.RunPage(main, content);
    restore();
    document.getElementById("place").textContent = content.row.experiment;
    document.title = `${content.row.name} · vlatrack`;
    VT.noteUnread(main, [content.read], load);
    VT.refine();
    return content;
  }

  VT.view.details = async (_, low, high) => (await VT.fetchJson(`/api/run/${path}/zoom?from=${low}&to=${high}`)).lines;
  VT.view.sources = () => [{ run: page.run, axes: page.content.lines.axes }];

  async function begin() {
    const content = await load();
    const right = document.getElementById("right");
    if (content.mlflow) right.append(VT.h("a", { href: `/mlflow?experiment=${encodeURIComponent(content.row.experiment)}` }, "MLflow"));
    right.append(VT.themeButton());
    const again = () => load().catch((error) => VT.failed(main, error));
    let first = true; /* tells what has just been loaded */
    VT.listen(`/api/changes?run=${encodeURIComponent(id)}`, null, (change) => {
      if (change.rows.length && !first) refresh();
      first = false;
      if (change.gone.includes(id)) VT.failed(main, new Error(`${id} is not in this runs folder any more`));
    }, again);
  }
  begin().catch((error) => VT.failed(main, error));
})();
