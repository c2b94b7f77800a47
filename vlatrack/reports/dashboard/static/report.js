"use strict";
/* A report: the page of a run with its content inside the file. */
(() => {
  const content = JSON.parse(document.getElementById("content").textContent);
  new VT.RunPage(document.getElementById("main"), content);
  document.title = `${content.row.name} · vlatrack`;
  document.getElementById("place").textContent = `${content.row.id} · as of ${VT.time(content.row.updated_ms)}`;
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
