// The timeline: a lane for each thread, a bar for each strand, over sampled tokens or over seconds.
const STEPS = [1, 2, 5];
const FAR = 1.5;  // a limit beyond so many times the trace is named at the edge instead of drawn

// Where strands begin and end on the axis, and where the axis ends.
const AXES = {
  tokens: {
    label: "sampled tokens",
    start: (strand) => strand.start, end: (strand) => strand.start + strand.length,
    birth: (thread) => thread.start,
    lines: (trace) => [["limit", "sampled span limit", trace.limits.span], ["budget", "sampled span budget", trace.budgets.span_sampled]],
  },
  seconds: {
    label: "seconds",
    start: (strand) => strand.times[0], end: (strand) => strand.times[1], birth: () => null,
    lines: (trace) => [["limit", "seconds limit", trace.limits.seconds], ["budget", "seconds budget", trace.budgets.seconds]],
  },
};

function longest(trace, axis) {
  return trace.strands.reduce((most, strand) => Math.max(most, AXES[axis].end(strand)), 0) || 1;
}
// How far the axis must reach for `trace`: to its end, and to the lines that are not far beyond it.
function reach(trace, axis) {
  const end = longest(trace, axis);
  const near = AXES[axis].lines(trace).map(([, , line]) => finite(line)).filter((line) => line !== null && line <= FAR * end);
  return Math.max(end, ...near);
}
// The chain that the trace's end waited for: over tokens it is given; over seconds, who ended last, then whom it waited for.
function critical(trace, axis) {
  if (axis === "tokens") return new Set(trace.strands.flatMap((strand, i) => (strand.critical ? [i] : [])));
  const ended = (i) => trace.strands[i].times[1];
  const last = (among) => among.reduce((best, i) => (best === undefined || ended(i) > ended(best) ? i : best), undefined);
  const path = new Set();
  for (let i = last([...trace.strands.keys()]); i !== undefined; i = last(trace.strands[i].after)) path.add(i);
  return path;
}

// Draw the timeline of `panel`. `upTo`: where the axis ends; `column`: width of the names. Equal ones make equal scales.
function timeline(panel, axis, upTo, column) {
  const { trace } = panel, box = panel.element.querySelector(".timeline");
  const geometry = layout(trace, axis, upTo, column, panel.width ??= box.clientWidth || 900);  // kept: to ask again is dear
  const path = critical(trace, axis);
  const top = document.createElementNS(SVG, "svg"), svg = document.createElementNS(SVG, "svg");
  for (const [one, height, label] of [[top, geometry.top, "axis"], [svg, geometry.height, "lanes"]]) {
    const attributes = { width: geometry.width, height, viewBox: `0 0 ${geometry.width} ${height}`, class: label };
    for (const [name, value] of Object.entries(attributes)) one.setAttribute(name, value);
  }
  top.setAttribute("aria-hidden", "true");
  svg.setAttribute("role", "group");
  svg.setAttribute("aria-label", `timeline of ${plural(trace.threads.length, "thread")} over ${short(longest(trace, axis))} ${AXES[axis].label}`);
  trace.threads.forEach((thread, i) => lane(svg, trace, thread, i, geometry));
  rule(top, svg, geometry);
  arrows(svg, trace, geometry, path);
  trace.strands.forEach((strand, i) => bar(svg, panel, strand, i, geometry, path.has(i)));
  box.replaceChildren(top, svg);
  legend(panel.element.querySelector(".key"), trace, axis);
}

// The names' column is as wide as its longest entry, and as the axis's label.
function namesWidth(trace) {
  const names = Math.max(...trace.threads.map((thread) => 7 * thread.id.length + 9 * Math.min(thread.depth, 6)));
  return Math.max(102, 30 + names + Math.max(...trace.threads.map((thread) => 6.2 * stopWord(thread).length)));
}
// Lanes grow thinner as threads grow many.
function layout(trace, axis, upTo, column, width) {
  const n = trace.threads.length, high = n <= 24 ? 24 : n <= 60 ? 19 : 15, left = Math.min(0.45 * width, column);
  const right = width - 14, scale = (right - left) / upTo;
  const x = (t) => left + t * scale;
  const lanes = new Map(trace.threads.map((thread, i) => [thread.id, i]));
  const lines = AXES[axis].lines(trace).filter(([, , line]) => finite(line) !== null);
  return {
    ...AXES[axis], axis, width, left, right, x, scale, upTo, high, thick: Math.round(0.56 * high), lines,
    top: 26 + 14 * lines.length, height: high * n + 6, y: (id) => high * lanes.get(id) + high / 2,
  };
}
// The end of a name that is too long for its room: what tells siblings apart.
function fitted(name, room) {
  const most = Math.max(2, Math.floor(room / 7));
  return name.length <= most ? name : `\u2026${name.slice(1 - most)}`;
}
// How threads that were not cut short ended: a sign, and its tone. The parent of one that returned sees what it wrote.
const ENDS = { answered: ["\u2713", "good"], returned: ["\u2713", "good"], no_answer: ["\u2013", "none"], cancelled: ["cancelled", "none"] };
function stopWord(thread) {
  return ENDS[thread.stop]?.[0] ?? words(thread.stop);
}
function told(thread) {
  return thread.message.length > 0 || thread.stop === "returned";
}

// Ticks, and limits and budgets as lines through all lanes, each named in a row of its own.
function rule(top, svg, g) {
  draw(top, "text", { class: "time", x: 6, y: g.top - 8 }, g.label);
  const smallest = Math.floor(Math.log10(g.upTo)) - 2;  // as a power of ten
  let step = 0;
  for (let i = 0; step * g.scale < 64; i++) step = STEPS[i % 3] * 10 ** (smallest + Math.floor(i / 3));
  if (g.axis === "tokens") step = Math.max(1, step);
  for (let i = 0; i * step <= g.upTo * 1.0001; i++) {
    const x = g.x(i * step);
    draw(svg, "line", { class: "tick", x1: x, x2: x, y1: 0, y2: g.height });
    draw(top, "line", { class: "tick", x1: x, x2: x, y1: g.top - 5, y2: g.top });
    const anchor = x > g.right - 12 ? "end" : "middle";
    draw(top, "text", { class: "time", x, y: g.top - 8, "text-anchor": anchor }, short(Number((i * step).toPrecision(6))));
  }
  g.lines.forEach(([kind, name, value], row) => {
    const y = 12 + 14 * row, x = g.x(value), near = value <= g.upTo;
    const text = `${name} ${short(value)}${near ? "" : " \u203a"}`, before = !near || x > g.left + 8 + 6.5 * text.length;
    const beside = near ? x + (before ? -5 : 5) : g.right;
    draw(top, "text", { class: `line ${kind}`, x: beside, y, "text-anchor": before ? "end" : "start" }, text);
    if (!near) return;
    draw(top, "line", { class: `line ${kind}`, x1: x, x2: x, y1: y - 9, y2: y + 3 });
    draw(svg, "line", { class: `line ${kind}`, x1: x, x2: x, y1: 0, y2: g.height });
  });
}

function lane(svg, trace, thread, i, g) {
  const y = g.y(thread.id), strands = thread.strands.map((one) => trace.strands[one]);
  const group = draw(svg, "g", { class: `lane${i % 2 ? " odd" : ""}`, "data-lane": i });
  draw(group, "rect", { class: "back", x: 0, y: y - g.high / 2, width: g.width, height: g.high });
  const from = 8 + 9 * Math.min(thread.depth, 6), room = g.left - 20 - 6.2 * stopWord(thread).length - from;
  draw(group, "text", { class: "name", x: from, y: y + 4 }, fitted(thread.id, room));
  const tone = ENDS[thread.stop]?.[1] ?? "bad";
  draw(group, "text", { class: `stop ${tone}`, x: g.left - 12, y: y + 4, "text-anchor": "end" }, stopWord(thread));
  draw(group, "title", {}, `thread ${thread.id} stopped: ${words(thread.stop)}`);
  strands.slice(1).forEach((strand, k) => {  // waiting between two strands of one thread
    draw(group, "line", { class: "wait", x1: g.x(g.end(strands[k])), x2: g.x(g.start(strand)), y1: y, y2: y });
  });
  if (!strands.length) {
    const born = g.birth(thread) ?? 0;
    const x = Math.min(g.x(born) + 4, g.right - 125);
    draw(group, "text", { class: "stop bad", x, y: y + 4 }, "\u2715 had no room to start");
  }
}

// Arrows come from `after`: down out of the strand that spawned, and up into the one that was waiting.
function arrows(svg, trace, g, path) {
  const threads = new Map(trace.threads.map((thread) => [thread.id, thread]));
  const layer = draw(svg, "g", { class: "arrows" });
  trace.strands.forEach((strand, i) => {
    for (const j of strand.after) {
      const before = trace.strands[j];
      if (before.thread === strand.thread) continue;
      const heavy = path.has(i) && path.has(j) ? " critical" : "";
      const from = g.y(before.thread), to = g.y(strand.thread), ended = g.x(g.end(before)), starts = g.x(g.start(strand));
      const half = g.thick / 2;
      if (threads.get(strand.thread).parent === before.thread) {
        const trunk = ended - 5;
        draw(layer, "path", { class: `spawn${heavy}`, d: `M${trunk},${from + half} V${to} H${starts - 4}` });
        draw(layer, "path", { class: `spawn${heavy} head`, d: `M${starts},${to} l-5.5,-3 v6 Z` });
      } else {
        const sender = threads.get(before.thread), heard = sender.parent === strand.thread && told(sender);
        const kind = heard ? "found" : "empty";  // a grandchild that outlasts its parent is waited for, not heard
        const wide = Math.max(3, g.x(g.end(strand)) - starts), trunk = starts + Math.min(5, wide / 2);
        const sign = to < from ? 1 : -1;
        draw(layer, "path", { class: `${kind}${heavy}`, d: `M${ended},${from} H${trunk} V${to + sign * (half + 4)}` });
        draw(layer, "path", { class: `${kind}${heavy} head`, d: `M${trunk},${to + sign * half} l-3,${sign * 5.5} h6 Z` });
      }
    }
  });
}

function bar(svg, panel, strand, i, g, onPath) {
  const x = g.x(g.start(strand)), y = g.y(strand.thread), long = Math.max(2.5, g.x(g.end(strand)) - x);
  const injected = strand.injected.reduce((n, [, ids]) => n + ids.length, 0);
  const when = g.axis === "tokens" ? `tokens ${count(strand.start)} to ${count(strand.start + strand.length)} of the sampled span`
    : `seconds ${clock(strand.times[0])} to ${clock(strand.times[1])}`;
  const where = onPath ? "; on the critical path" : "";
  const label = `strand ${strand.id}: ${injected} injected, ${strand.length} sampled, ${when}${where}`;
  const group = draw(svg, "g", {
    class: `strand${onPath ? " critical" : ""}`, "data-strand": i, tabindex: -1, role: "button", "aria-label": label,
  });
  draw(group, "rect", { class: "box", x, y: y - g.thick / 2, width: long, height: g.thick, rx: 2 });
  if (onPath) draw(group, "rect", { class: "spine", x, y: y + g.thick / 2 - 2.5, width: long, height: 2.5 });
  const text = String(strand.length);
  if (g.high > 15 && long > 10 + 7 * text.length) {
    draw(group, "text", { x: x + long / 2, y: y + 3.5, "text-anchor": "middle" }, text);
  }
  draw(group, "title", {}, label);
}

function legend(key, trace, axis) {
  const entries = [["critical", `critical path: ${axis === "tokens" ? "its sampled tokens are the sampled span" : "whom the end waited for"}`]];
  const children = trace.threads.slice(1);
  if (children.length) entries.push(["strand", "other strands"], ["wait", "waits"], ["spawn", "spawns \u2193"]);
  const waited = new Set(trace.strands.flatMap((strand) => strand.after.map((i) => trace.strands[i].thread)));
  const joined = children.filter((thread) => waited.has(thread.id) && thread.stop !== "cancelled");
  if (joined.some(told)) entries.push(["found", "joins with something \u2191"]);
  if (!joined.every(told)) entries.push(["empty", "joins with nothing \u2191"]);
  if (trace.threads.some((thread) => ENDS[thread.stop]?.[1] === "good")) entries.push(["sign", "answered or returned", "\u2713"]);
  if (trace.threads.some((thread) => thread.stop === "no_answer")) entries.push(["sign", "no answer", "\u2013"]);
  key.replaceChildren(...entries.map(([kind, text, sign]) => make("span", {}, make("i", { class: kind }, sign ?? ""), text)));
}
