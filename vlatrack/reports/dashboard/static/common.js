"use strict";
/* What all pages share: elements, numbers as people read them, the theme. Text of runs is only ever set as text. */
const VT = {};

/* An element with attributes and children; `on…` are listeners, null children are left out. */
VT.h = (tag, attributes, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
};

VT.fetchJson = async (address) => {
  const response = await fetch(address, { headers: { accept: "application/json" } });
  if (response.status === 202) { /* the server has just begun to read its runs */
    await new Promise((resolve) => setTimeout(resolve, 300));
    return VT.fetchJson(address);
  }
  if (!response.ok) {
    const told = await response.text();
    let text = told;
    try { text = JSON.parse(told).error ?? told; } catch { /* plain text */ }
    throw new Error(text.trim() || `${response.status} ${response.statusText}`);
  }
  return response.json();
};

/* Puts these values into the address without a new entry in the history; null removes one. */
VT.setQuery = (values) => {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(values))
    if (value === null || value === "") query.delete(name); else query.set(name, value);
  const text = query.toString();
  try { history.replaceState(history.state, "", `${location.pathname}${text ? `?${text}` : ""}${location.hash}`); }
  catch { /* the address of a page from a file cannot be changed */ }
};

VT.runPath = (id) => id.split("/").map(encodeURIComponent).join("/");

/* --- numbers ------------------------------------------------------------------------------------- */

VT.number = (value) => {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return value; /* NaN, Infinity */
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e5 || size < 1e-3) return value.toExponential(2).replace("e+", "e");
  return String(Number(value.toPrecision(4)));
};

VT.count = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en-US"));

VT.duration = (seconds) => {
  if (seconds === null || seconds === undefined || !isFinite(seconds)) return "–";
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.round(hours / 24)} days`;
};

VT.bytes = (bytes) => {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (bytes < 1000 || unit === "GB") return `${unit === "B" ? bytes : bytes.toPrecision(3)} ${unit}`;
    bytes /= 1000;
  }
};

VT.ago = (milliseconds) => {
  if (!milliseconds) return "–";
  const seconds = (Date.now() - milliseconds) / 1000;
  return seconds < 5 ? "now" : `${VT.duration(seconds)} ago`;
};

VT.time = (milliseconds) => (milliseconds ? new Date(milliseconds).toLocaleString() : "–");

/* --- colours: those of Okabe and Ito, which colour-blind readers can tell apart ------------------- */

VT.isDark = () => {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};
VT.css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
VT.splitStyle = (split) => {
  const dark = VT.isDark();
  return {
    train: { label: "train", color: dark ? "#a8adb5" : "#6b7078", width: 1.25 },
    val_ind: { label: "val_ind", color: dark ? "#56b4e9" : "#0072b2", width: 2.25 },
    val_ood: { label: "val_ood", color: dark ? "#f0a04b" : "#d55e00", width: 2.25, dash: [7, 3] },
    success: { label: "success rate", color: dark ? "#3cc79b" : "#009e73", width: 2.25 },
    success_low: { label: "95 % from", color: dark ? "#3cc79b" : "#009e73", width: 1, dash: [2, 3] },
    success_high: { label: "95 % to", color: dark ? "#3cc79b" : "#009e73", width: 1, dash: [2, 3] },
    value: { label: "value", color: dark ? "#56b4e9" : "#0072b2", width: 1.75 },
  }[split];
};
VT.runStyle = (number) => {
  const light = ["#0072b2", "#d55e00", "#009e73", "#a8487e", "#8a6d00", "#3d7ea6", "#444444"];
  const dark = ["#56b4e9", "#f0a04b", "#3cc79b", "#e79ac4", "#f0e442", "#8fd0ff", "#c8c8c8"];
  const colors = VT.isDark() ? dark : light;
  const dashes = [null, [8, 4], [2, 3]];
  return { color: colors[number % colors.length], dash: dashes[Math.floor(number / colors.length) % 3], width: 1.75 };
};

/* A piece of line as in the charts, for legends. */
VT.swatch = (color, dash) => {
  const [svg, line] = ["svg", "line"].map((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));
  const set = (element, attributes) => { for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value); };
  set(svg, { class: "swatch", viewBox: "0 0 24 6", "aria-hidden": "true" });
  set(line, { x1: 0, x2: 24, y1: 3, y2: 3, stroke: color, "stroke-width": 2.5, "stroke-dasharray": (dash ?? []).join(" ") });
  svg.append(line);
  return svg;
};

/* --- theme --------------------------------------------------------------------------------------- */

VT.themeListeners = [];
VT.setTheme = (theme) => {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  try { theme ? localStorage.setItem("vlatrack-theme", theme) : localStorage.removeItem("vlatrack-theme"); }
  catch { /* a page from a file may have no storage */ }
  for (const listener of VT.themeListeners) listener();
};
VT.themeButton = () => {
  const button = VT.h("button", {
    class: "plain", type: "button", "aria-label": "light or dark", title: "light or dark",
    onclick: () => VT.setTheme(VT.isDark() ? "light" : "dark"),
  }, "◐");
  return button;
};
(() => {
  let stored = null;
  try { stored = localStorage.getItem("vlatrack-theme"); } catch { /* none */ }
  const asked = new URLSearchParams(location.search).get("theme");
  if (asked === "light" || asked === "dark") document.documentElement.dataset.theme = asked;
  else if (stored) document.documentElement.dataset.theme = stored;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const listener of VT.themeListeners) listener();
  });
})();

/* --- what several pages show ------------------------------------------------------------------------ */

VT.status = (status) => VT.h("span", { class: `status ${status.toLowerCase()}` }, status.toLowerCase());

VT.health = (row) => {
  if (row.status === "UNREADABLE") return VT.h("span", { class: "health bad" }, "unreadable");
  const finds = row.findings ?? [];
  const bad = row.damaged_lines ? [`${row.damaged_lines} damaged lines in the journal`] : [];
  if (!finds.length && !bad.length) {
    if (!row.is_watched) return VT.h("span", { class: "muted", title: "its health was not looked at: vlatrack health RUN does" }, "not watched");
    const lost = row.status === "FAILED" || row.status === "KILLED";
    return VT.h("span", { class: lost ? "health" : "health good" }, lost ? "–" : "healthy");
  }
  const critical = finds.some((finding) => finding.severity === "critical");
  const told = [...finds.map((finding) => finding.message), ...bad];
  const label = finds.length ? [...new Set(finds.map((finding) => finding.detector.replaceAll("_", " ")))].join(", ") : bad[0];
  return VT.h("span", { class: `health ${critical ? "bad" : "warn"}`, title: told.join("\n") }, label);
};

VT.progress = (row) => {
  const share = row.total_steps ? Math.min(1, (row.step ?? 0) / row.total_steps) : row.status === "FINISHED" ? 1 : null;
  const shown = `${VT.count(row.step)}${row.total_steps ? ` / ${VT.count(row.total_steps)}` : ""}`;
  return VT.h("div", { class: "progress" },
    share === null ? null : VT.h("div", {
      class: `bar ${row.status.toLowerCase()}`, role: "progressbar", "aria-label": "progress",
      "aria-valuenow": Math.round(share * 100), "aria-valuemin": 0, "aria-valuemax": 100,
    }, VT.h("div", { style: { width: `${share * 100}%` } })),
    VT.h("span", { class: "number" }, shown));
};

VT.undelivered = (row) => [
  ...Object.entries(row.undelivered ?? {}).map(([label, left]) => `${label} ${VT.count(left)}`),
  ...Object.entries(row.refused ?? {}).map(([label, left]) => `${label} refused ${VT.count(left)}`),
].join(", ");

/* Of long journals the first seconds are shown at once, and `again` is called until all is read. */
VT.noteUnread = (main, reads, again) => {
  const done = reads.reduce((sum, read) => sum + read.bytes, 0), all = reads.reduce((sum, read) => sum + read.of, 0);
  /* the last line may be half written */
  if (all - done < 1e5) return;
  main.prepend(VT.h("p", { class: "note", role: "status" }, `${Math.floor((100 * done) / all)} % is read; the rest follows`));
  setTimeout(again, 200);
};

VT.failed = (root, error) => root.replaceChildren(VT.h("p", { class: "problem", role: "alert" }, error.message));
