"use strict";
/* A report: the page of a run, or a comparison of some, with its content inside the file. */
(() => {
  const content = JSON.parse(document.getElementById("content").textContent);
  const Page = content.runs ? VT.ComparePage : VT.RunPage;
  new Page(document.getElementById("main"), content);
  const rows = content.runs ? content.runs.map((entry) => entry.row) : [content.row];
  const updated = Math.max(...rows.map((row) => row.updated_ms ?? 0));
  document.title = `${content.runs ? "comparison" : content.row.name} · vlatrack`;
  document.getElementById("place").textContent = `${content.runs ? `${rows.length} runs` : content.row.id} · as of ${VT.time(updated)}`;
  document.getElementById("right").append(VT.themeButton());
  /* For the printer, everything is drawn at the width of a page, also what has not been on the screen yet. */
  const draw = () => { for (const chart of VT.view.charts) { chart.isOld = true; chart.draw(); } };
  let theme;
  addEventListener("beforeprint", () => {
    theme = document.documentElement.dataset.theme;
    document.documentElement.dataset.theme = "light";
    document.body.classList.add("printing");
    draw();
  });
  addEventListener("afterprint", () => {
    document.documentElement.dataset.theme = theme;
    document.body.classList.remove("printing");
    draw();
  });
})();
