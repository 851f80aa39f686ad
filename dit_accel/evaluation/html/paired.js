// Paired differences: every prompt's score less that of what the reader compares with.
"use strict";
(() => {
  const source = document.getElementById("paired-data");
  if (!source) return;
  document.documentElement.classList.add("js");
  const data = JSON.parse(source.textContent);
  const plot = document.getElementById("paired-plot");
  const note = document.getElementById("paired-note");
  const baseline = document.getElementById("baseline");
  const SVG = document.querySelector("svg").namespaceURI;
  const STEPS = "fewer steps at equal FLOPs";
  const DOTS = 200, DRAWS = 2000;
  const metric = () => document.querySelector('input[name="prompts-y"]:checked').value;

  const choices = [[-1, STEPS], ...data.methods.map((name, index) => [index, name])];
  const hasSteps = Object.values(data.metrics).some((m) => m.minusSteps.some((v) => v?.some((x) => x !== null)));
  for (const [value, text] of hasSteps ? choices : choices.slice(1)) baseline.append(new Option(text, value));

  const random = (seed) => () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };

  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

  const interval = (values) => {
    const value = mean(values);
    if (values.length < 3) return { value, low: null, high: null };
    const draw = random(1);
    const means = Float64Array.from({ length: DRAWS }, () => {
      let sum = 0;
      for (let i = 0; i < values.length; i++) sum += values[Math.floor(draw() * values.length)];
      return sum / values.length;
    }).sort();
    return { value, low: means[Math.floor(0.025 * DRAWS)], high: means[Math.ceil(0.975 * DRAWS) - 1] };
  };

  const rows = (scores, against) =>
    data.methods
      .map((name, index) => {
        const mine = scores.scores[index];
        const other = against < 0 ? null : scores.scores[against];
        const minus = (v, i) => (against < 0 ? (scores.minusSteps[index] ?? [])[i] ?? null : v === null || other[i] === null ? null : v - other[i]);
        // An exact clip counts as so many dB that one would stretch the axis over all others.
        const exact = (value) => scores.exact !== null && value >= scores.exact;
        const marks = mine.map((v, i) => ({ value: minus(v, i), mine: v })).filter((m) => m.value !== null)
          .map((m) => ({ value: m.value, capped: exact(m.mine) || exact(m.mine - m.value) }));
        const values = marks.map((m) => m.value);
        if (!values.length || index === against) return null;
        return { name, colour: data.colours[index], marks, values, mean: (against < 0 && scores.againstSteps[index]) || interval(values) };
      })
      .filter(Boolean);

  const element = (name, attributes, text) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "fill" || key === "stroke") made.style[key] = value;
      else made.setAttribute(key, value);
    }
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const thinned = (marks) => {
    const sorted = [...marks].sort((a, b) => a.value - b.value);
    if (sorted.length <= DOTS) return sorted;
    return Array.from({ length: DOTS }, (_, i) => sorted[Math.round((i * (sorted.length - 1)) / (DOTS - 1))]);
  };

  const ticks = (low, high, count) => {
    const rough = (high - low) / count;
    const unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= rough);
    const found = [];
    for (let t = Math.ceil(low / step) * step; t <= high + step / 1e6; t += step) found.push(Math.abs(t) < step / 1e6 ? 0 : t);
    return found;
  };

  const signed = (value, digits) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);

  const draw = () => {
    const scores = data.metrics[metric()];
    const against = +baseline.value;
    const shown = rows(scores, against);
    plot.replaceChildren();
    const name = against < 0 ? STEPS : data.methods[against];
    if (!shown.length) {
      note.textContent = `No method can be compared with ${name} by ${scores.title}.`;
      return;
    }
    const width = Math.max(240, plot.clientWidth);
    const narrow = width < 620;
    const pitch = narrow ? 40 : 27;
    const left = narrow ? 8 : Math.min(250, 28 + 7.6 * Math.max(...shown.map((r) => r.name.length)));
    const right = narrow ? 8 : 190;
    const bottom = 38;
    const height = shown.length * pitch + bottom + 16;
    const finite = shown.flatMap((r) => r.marks).filter((m) => !m.capped).map((m) => m.value).concat(0);
    const capped = shown.some((r) => r.marks.some((m) => m.capped));
    const span = Math.max(...finite) - Math.min(...finite) || 1;
    const low = Math.min(...finite) - 0.06 * span, high = Math.max(...finite) + 0.06 * span;
    const x = (value) => left + ((Math.min(high, Math.max(low, value)) - low) / (high - low)) * (width - left - right);
    const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, height });
    const base = shown.length * pitch + 16;
    for (const tick of ticks(low, high, narrow ? 4 : 8)) {
      svg.append(element("line", { x1: x(tick), x2: x(tick), y1: 10, y2: base, stroke: tick ? "var(--grid)" : "var(--muted)", "stroke-width": tick ? 0.8 : 1.4 }));
      svg.append(element("text", { x: x(tick), y: base + 15, "text-anchor": "middle", class: "muted" }, `${+tick.toPrecision(6)}`.replace("-", "−")));
    }
    svg.append(element("text", { x: x(0), y: base + 32, "text-anchor": x(0) > width / 2 ? "end" : "start", class: "muted" },
      x(0) > width / 2 ? `${scores.title}: ${scores.higher ? "worse" : "better"} ← 0 → ` : `0 → ${scores.title}: ${scores.higher ? "better" : "worse"}`));
    shown.forEach((row, index) => {
      const y = 16 + index * pitch + (narrow ? 28 : 13);
      const { value, low: from, high: to } = row.mean;
      const text = signed(value, scores.digits) + (from === null ? "" : ` [${signed(from, scores.digits)}, ${signed(to, scores.digits)}]`);
      if (narrow) {
        svg.append(element("text", { x: left, y: y - 12 }, row.name));
        svg.append(element("text", { x: width - right, y: y - 12, "text-anchor": "end", class: "muted" }, text));
      } else {
        svg.append(element("text", { x: left - 14, y: y + 4.5, "text-anchor": "end" }, row.name));
        svg.append(element("text", { x: width - right + 14, y: y + 4.5, class: "muted" }, text));
      }
      for (const mark of thinned(row.marks)) {
        const at = x(mark.value), style = { fill: `var(${row.colour})`, "fill-opacity": 0.6 };
        const tip = mark.value < 0 ? -7 : 7;
        if (mark.capped) svg.append(element("path", { d: `M${at} ${y - 4.5}L${at + tip} ${y}L${at} ${y + 4.5}Z`, class: "capped", ...style }));
        else svg.append(element("circle", { cx: at, cy: y, r: 3.6, ...style }));
      }
      if (from !== null) svg.append(element("line", { x1: x(from), x2: x(to), y1: y, y2: y, stroke: "var(--ink)", "stroke-width": 1.8 }));
      svg.append(element("line", { x1: x(value), x2: x(value), y1: y - 7, y2: y + 7, stroke: "var(--ink)", "stroke-width": 2.6 }));
    });
    plot.append(svg);
    const count = Math.max(...shown.map((r) => r.values.length));
    note.textContent =
      `${scores.title} of each prompt less its ${scores.title.split(",")[0]} with ${name}; ${scores.higher ? "right" : "left"} of 0 is better. ` +
      `The bar is the mean with its 95 % interval over up to ${count} prompts` +
      (against < 0 ? ", as in the table." : `, from ${DRAWS} draws of the prompts in this page.`) +
      (capped ? " A triangle at the edge: one of the two clips is exact, and counts as 100 dB." : "") +
      (count > DOTS ? ` Of more than ${DOTS} dots a row, ${DOTS} are drawn, at even ranks.` : "");
  };

  baseline.addEventListener("change", draw);
  for (const input of document.querySelectorAll('input[name="prompts-y"]')) input.addEventListener("change", draw);
  let width = 0;
  const watch = () => { if (plot.clientWidth !== width) { width = plot.clientWidth; draw(); } };
  if ("ResizeObserver" in window) new ResizeObserver(watch).observe(plot); else window.addEventListener("resize", watch);
  watch();
})();
