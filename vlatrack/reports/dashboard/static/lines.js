"use strict";
/* The lines of a run as the server sends them, {axes, lines, settled}, and how new points come to those that are there. */

/* From which step on the points may have changed. */
VT.sinceOf = (lines) => {
  const last = Math.max(0, ...lines.axes.map((axis) => axis.step[axis.step.length - 1] ?? 0));
  return Math.min(lines.settled ?? Infinity, last);
};

/* New points take the place of those from `since` on. */
VT.mergeLines = (lines, fresh, since) => {
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
  lines.settled = fresh.settled;
};
