"use strict";
/* What x is: the step, the epoch, the time since the start or the samples, and back to steps; lines in more detail where
   the page has them. An axis is {step, t_ms}; a run is what runOf gives. */

VT.X_LABELS = { step: "step", epoch: "epoch", time: "time since the start", samples: "samples" };

/* Whether a run says what its steps are on this axis. */
VT.knowsX = (run, x) => ({ step: true, epoch: run.epochs[0].length > 0, time: run.has_times, samples: run.batch_size !== null }[x]);

VT.xValues = (axis, run) => {
  if (VT.view.x === "step") return axis.step;
  if (VT.view.x === "time") return axis.t_ms.map((t) => (t - run.started_ms) / 1000);
  if (VT.view.x === "samples") return axis.step.map((step) => step * run.batch_size);
  return axis.step.map((step) => VT.interpolated(run.epochs, step));
};

/* What turns the steps of a run into other values of x, from its row and its lines. Logs that were imported have the time of
   the import, unless event files told theirs. */
VT.runOf = (row, { lines, axes }, batchSize) => ({
  id: row.id, started_ms: row.started_ms ?? 0, batch_size: Number(batchSize) || null,
  has_times: !row.imported_from || axes.some(({ t_ms }) => t_ms.length && t_ms[t_ms.length - 1] - t_ms[0] > 60_000),
  epochs: lines.epoch ? [axes[lines.epoch.axis].step, lines.epoch.values] : [[], []],
});

/* A value of x with its name, as the charts tell it. */
VT.xText = (x) => `${VT.X_LABELS[VT.view.x]} ${VT.view.x === "time" ? VT.duration(x) : VT.view.x === "epoch" ? VT.number(x) : VT.count(x)}`;

/* The first and the last step between two values of x, rather too many than too few; `axes` are those of the run. */
VT.stepsBetween = ([low, high], run, axes) => {
  if (VT.view.x === "step") return [Math.floor(low), Math.ceil(high)];
  if (VT.view.x === "samples") return [Math.floor(low / run.batch_size), Math.ceil(high / run.batch_size)];
  if (VT.view.x === "epoch") {
    const [steps, epochs] = run.epochs;
    return [Math.floor(VT.interpolated([epochs, steps], low)), Math.ceil(VT.interpolated([epochs, steps], high))];
  }
  const longest = axes.reduce((one, other) => (other.step.length > one.step.length ? other : one), { step: [], t_ms: [] });
  const after = (seconds) => (t) => t > run.started_ms + 1000 * seconds;
  const first = longest.t_ms.findIndex(after(low)), next = longest.t_ms.findIndex(after(high));
  return [first < 1 ? 0 : longest.step[first - 1], next < 0 ? Infinity : longest.step[next]];
};

/* `table` is [steps, values], both ascending. */
VT.interpolated = (table, step) => {
  const [steps, values] = table;
  if (!steps.length) return 0;
  const last = steps.length - 1;
  if (step <= steps[0]) return steps[0] ? (values[0] * step) / steps[0] : values[0];
  if (step >= steps[last]) return steps[last] ? (values[last] * step) / steps[last] : values[last];
  let low = 0, high = last;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle; else high = middle;
  }
  const share = (step - steps[low]) / (steps[high] - steps[low] || 1);
  return values[low] + share * (values[high] - values[low]);
};

/* The line with what is known in more detail in the place of its few points there. */
VT.inDetail = (line) => {
  const lines = VT.view.fine.get(line.run.id), found = lines?.lines[line.key];
  if (!found) return line;
  const axis = lines.axes[found.axis], fine = axis.step;
  const bad = [...new Set([...(line.bad ?? []), ...(found.bad ?? [])])];
  if (!fine.length) return { ...line, bad };
  const { step, t_ms } = line.axis;
  let before = step.findIndex((one) => one >= fine[0]), after = step.findIndex((one) => one > fine[fine.length - 1]);
  if (before < 0) before = step.length;
  if (after < 0) after = step.length;
  const joined = (few, many) => [...few.slice(0, before), ...many, ...few.slice(after)];
  return { ...line, bad, axis: { step: joined(step, fine), t_ms: joined(t_ms, axis.t_ms) }, values: joined(line.values, found.values) };
};

/* Exponential moving average without the bias of its beginning. */
VT.smoothed = (values, weight) => {
  let total = 0, norm = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return null;
    total = weight * total + (1 - weight) * value;
    norm = weight * norm + (1 - weight);
    return total / norm;
  });
};

VT.sameX = (xs) => {
  /* uPlot wants strictly ascending x values; of several at one place the last counts. */
  const keep = [];
  for (let i = 0; i < xs.length; i++) if (i + 1 === xs.length || xs[i + 1] > xs[i]) keep.push(i);
  return keep;
};

/* A number at an axis. */
VT.short = (value) => {
  const size = Math.abs(value);
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(4))}M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(4))}k`;
  if (size > 0 && size < 1e-3) return value.toExponential(1).replace(".0e", "e");
  return String(Number(value.toPrecision(4)));
};
