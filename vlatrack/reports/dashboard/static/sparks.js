"use strict";
/* The course of the four documented losses as small pictures in the table of runs, asked for when they are on the screen. */

VT.Sparks = class {
  static METRICS = ["train_closs", "train_loss_ct", "train_z_loss", "train_loss"];

  /* `rowOf` and `canvasOf` find what there is of a run, by its id. */
  constructor(rowOf, canvasOf) {
    Object.assign(this, { rowOf, canvasOf, known: new Map(), wanted: new Set() });
    this.watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) this.ask(entry.target.dataset.run);
    }, { rootMargin: "300px" });
    VT.themeListeners.push(() => { for (const [id, { lines }] of this.known) this.paint(this.canvasOf(id), lines); });
  }

  canvas(row) {
    if (row.step === null) return null;
    const canvas = VT.h("canvas", { class: "spark", width: 288, height: 44, "data-run": row.id, "aria-hidden": "true",
      style: { width: "144px" } });
    this.watcher.observe(canvas);
    this.paint(canvas, this.known.get(row.id)?.lines);
    return canvas;
  }

  ask(id) {
    const known = this.known.get(id), row = this.rowOf(id);
    if (!row || (known && known.step === row.step)) return;
    if (!this.wanted.size) setTimeout(() => this.fetch(), 60);
    this.wanted.add(id);
  }

  async fetch() {
    const ids = [...this.wanted].slice(0, 25);
    ids.forEach((id) => this.wanted.delete(id));
    if (this.wanted.size) setTimeout(() => this.fetch(), 0);
    const query = ids.map((id) => `run=${encodeURIComponent(id)}`).join("&");
    const found = await VT.fetchJson(`/api/sparks?${query}`).catch(() => ({}));
    for (const [id, lines] of Object.entries(found)) {
      this.known.set(id, { step: this.rowOf(id)?.step, lines });
      this.paint(this.canvasOf(id), lines);
    }
  }

  paint(canvas, lines) {
    if (!canvas || !lines) return;
    const context = canvas.getContext("2d"), width = canvas.width / VT.Sparks.METRICS.length, height = canvas.height;
    context.clearRect(0, 0, canvas.width, height);
    context.strokeStyle = VT.css("--accent");
    context.lineWidth = 2;
    VT.Sparks.METRICS.forEach((name, number) => {
      const points = lines[name] ?? [];
      const values = points.map((point) => point[1]), steps = points.map((point) => point[0]);
      const low = Math.min(...values), high = Math.max(...values), first = Math.min(...steps), last = Math.max(...steps);
      context.beginPath();
      points.forEach(([step, value], i) => {
        const x = number * width + 3 + ((step - first) / (last - first || 1)) * (width - 8);
        const y = height - 3 - ((value - low) / (high - low || 1)) * (height - 6);
        if (i) context.lineTo(x, y); else context.moveTo(x, y);
      });
      context.stroke();
    });
  }
};
