"use strict";
/* The evaluations of a run in simulators: success rates with their intervals, and videos of episodes. */

VT.RunPage.prototype.evaluations = function () {
  const { evaluations } = this.content;
  return evaluations.length ? this.section("evaluations", "Evaluations", evaluations.map((one) => this.evaluation(one))) : null;
};

VT.RunPage.prototype.evaluation = function ({ name, place, checkpoint, route, instead, rates, videos }) {
  const how = [place, checkpoint, route && `route ${route}`, instead].filter(Boolean).join(" · ");
  return VT.h("div", {}, VT.h("h3", {}, name ?? place), VT.h("p", { class: "muted" }, how),
    rates.length ? VT.successTable(rates, name ?? place) : VT.h("p", {}, "not complete yet"),
    this.filesAt && videos.length ? VT.videoList(videos) : null);
};

VT.successTable = (rates, name) => {
  const percent = (rate) => (rate === null ? "–" : `${(100 * rate).toFixed(1)} %`), hasErrors = rates.some((of) => of.errors);
  const rows = rates.map((of) => VT.h("tr", {}, VT.h("th", { scope: "row" }, of.task),
    VT.h("td", { class: "n" }, `${VT.count(of.successes)} / ${VT.count(of.episodes)}`), VT.h("td", { class: "n" }, percent(of.rate)),
    VT.h("td", { class: "n" }, of.wilson ? of.wilson.map(percent).join(" – ") : "–"), VT.h("td", {}, VT.rateBar(of)),
    hasErrors ? VT.h("td", { class: "n" }, VT.count(of.errors)) : null));
  const heads = ["task", "successes", "rate", "95 % (Wilson)", "", ...(hasErrors ? ["errors"] : [])];
  return VT.h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `success rates of ${name}` },
    VT.h("table", { class: "plain-table" }, VT.h("thead", {}, VT.h("tr", {}, heads.map((label, i) => (label
      ? VT.h("th", { scope: "col", class: i ? "n" : null }, label) : VT.h("td", {}))))), VT.h("tbody", {}, rows)));
};

/* The rate as a dot on its interval, from 0 to 1. */
VT.rateBar = ({ rate, wilson }) => {
  if (rate === null || !wilson) return null;
  const [low, high] = wilson, at = (share) => `${100 * share}%`;
  return VT.h("div", { class: "rate", "aria-hidden": "true" },
    VT.h("div", { class: "interval", style: { left: at(low), width: at(high - low) } }), VT.h("div", { class: "dot", style: { left: at(rate) } }));
};

/* Closed at first, and nothing is loaded until it is opened: a hundred videos are many megabytes. */
VT.videoList = (videos) => {
  const figures = videos.map((path) => {
    const file = path.split("/").pop(), [, outcome, title] = file.match(/^(success|failure)-(.*)\.mp4$/) ?? [null, null, file];
    return VT.h("figure", { class: "chart" },
      VT.h("video", { controls: true, preload: "none", playsinline: true, loop: true, src: VT.filePath(path), "aria-label": file }),
      VT.h("figcaption", {}, VT.h("span", {}, title),
        outcome ? VT.h("span", { class: `status ${outcome === "success" ? "finished" : "failed"}` }, outcome) : null));
  });
  const load = (event) => {
    if (event.target.open) for (const video of event.target.querySelectorAll("video")) video.preload = "metadata";
  };
  return VT.h("details", { ontoggle: load }, VT.h("summary", {}, `${videos.length} ${videos.length > 1 ? "videos" : "video"}`),
    VT.h("div", { class: "grid" }, figures));
};
