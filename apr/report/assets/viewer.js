"use strict";
(() => {
  const { pieces, space, traces } = JSON.parse(document.getElementById("apr-traces").textContent);
  const at = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";
  const LANE = 24, BAR = 13, TOP = 30, RIGHT = 16;
  let filter = "all", shown = [], current = 0, chosen = 0;

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }
  function draw(parent, tag, attributes, text) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  }
  const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
  const words = (name) => name.replace(/_/g, " ");

  // ---- which trace -------------------------------------------------------------------------------------------------
  const KINDS = { all: () => true, correct: (t) => t.correct === true, wrong: (t) => t.correct === false };
  const VERDICTS = new Map([[true, ["good", "\u2713", "correct"]], [false, ["bad", "\u2717", "wrong"]], [null, ["", "?", "not verified"]]]);

  function setFilter(kind) {
    filter = kind;
    shown = traces.filter(KINDS[kind]);
    current = 0;
    chosen = 0;
    render();
  }
  function go(to) {
    if (!shown.length) return;
    current = (to + shown.length) % shown.length;
    chosen = 0;
    render();
  }
  for (const [kind, test] of Object.entries(KINDS)) {
    const button = make("button", { type: "button", "data-kind": kind }, `${kind} ${traces.filter(test).length}`);
    button.addEventListener("click", () => setFilter(kind));
    at("v-filter").append(button);
  }
  at("v-previous").addEventListener("click", () => go(current - 1));
  at("v-next").addEventListener("click", () => go(current + 1));
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, textarea, select")) return;
    if (event.key === "ArrowLeft") go(current - 1);
    else if (event.key === "ArrowRight") go(current + 1);
    else return;
    event.preventDefault();
  });

  function render() {
    for (const button of at("v-filter").children) {
      button.setAttribute("aria-pressed", String(button.dataset.kind === filter));
    }
    const trace = shown[current];
    at("v-place").textContent = shown.length ? `trace ${current + 1} of ${shown.length}` : "no such trace";
    at("v-dots").replaceChildren(...shown.map((one, i) => {
      const [tone, sign, word] = VERDICTS.get(one.correct);
      const dot = make("button", {
        type: "button", class: `dot ${tone}`, "aria-current": String(i === current),
        title: `${one.title}: ${word}, ${plural(one.threads.length, "thread")}`,
      }, sign);
      dot.addEventListener("click", () => go(i));
      return dot;
    }));
    for (const id of ["v-timeline", "v-detail", "v-facts", "v-answer", "v-key"]) at(id).replaceChildren();
    at("v-title").textContent = trace ? trace.title : "";
    const [tone, sign, word] = trace ? VERDICTS.get(trace.correct) : ["", "", ""];
    at("v-badge").textContent = `${sign} ${word}`;
    at("v-badge").className = `badge ${tone}`;
    if (!trace) return;
    at("v-answer").append(make("span", {}, trace.answer === null ? "no answer" : trace.answer),
      make("small", {}, ` ${trace.verdict}; root stopped: ${words(trace.stop)}`));
    for (const [group, facts] of Object.entries(trace.facts)) {
      if (!Object.keys(facts).length) continue;
      const row = make("div", {}, make("em", {}, group));
      for (const [name, value] of Object.entries(facts)) row.append(make("span", {}, `${words(name)} `, make("b", {}, value)));
      at("v-facts").append(row);
    }
    timeline(trace);
    key(trace);
    detail(trace);
  }

  // ---- the timeline ------------------------------------------------------------------------------------------------
  function timeline(trace) {
    const lanes = new Map(trace.threads.map((thread, i) => [thread.id, i]));
    const labels = trace.threads.map((thread) => thread.id.length + 2 * thread.depth);
    const left = Math.min(190, 84 + 6.5 * Math.max(...labels));
    const width = Math.max(560, at("v-timeline").clientWidth || 900);
    const height = TOP + LANE * trace.threads.length + 8;
    // A gutter at each time at which strands start makes room for the arrows; it takes no tokens.
    const gates = [...new Set(trace.strands.map((s) => s.start))].filter((t) => t > 0).sort((a, b) => a - b);
    const room = width - left - RIGHT;
    const gutter = gates.length ? Math.min(26, (0.3 * room) / gates.length) : 0;
    const scale = (room - gutter * gates.length) / Math.max(1, trace.span);
    const passed = (t, including) => gates.filter((gate) => gate < t || (including && gate === t)).length;
    const endX = (t) => left + t * scale + gutter * passed(t, false);
    const startX = (t) => left + t * scale + gutter * passed(t, true);
    const laneY = (thread) => TOP + LANE * lanes.get(thread) + LANE / 2;

    const svg = draw(at("v-timeline"), "svg", {
      width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": `timeline of ${plural(trace.threads.length, "thread")} over ${trace.span} tokens`,
    });
    for (const gate of gates) {
      draw(svg, "rect", { class: "gate", x: endX(gate), y: TOP - 4, width: gutter, height: height - TOP });
    }
    const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000].find((n) => n * scale > 58) || 20000;
    for (let t = 0; t <= trace.span; t += step) {
      draw(svg, "line", { class: "tick", x1: endX(t), x2: endX(t), y1: TOP - 6, y2: height });
      draw(svg, "text", { class: "time", x: endX(t), y: TOP - 12, "text-anchor": t ? "middle" : "start" }, String(t));
    }
    draw(svg, "text", { class: "time", x: 4, y: TOP - 12 }, "span tokens");

    for (const thread of trace.threads) {
      const y = laneY(thread.id);
      const lane = draw(svg, "g", { class: "lane" });
      draw(lane, "rect", { class: "back", x: 0, y: y - LANE / 2, width, height: LANE });
      draw(lane, "text", { class: "name", x: 6 + 11 * thread.depth, y: y + 4 }, thread.id);
      draw(lane, "text", { class: `stop ${thread.message.length ? "good" : "none"}`, x: left - 12, y: y + 4, "text-anchor": "end" },
        words(thread.stop));
      const strands = thread.strands.map((i) => trace.strands[i]);
      strands.slice(1).forEach((strand, i) => {  // waiting between two strands of one thread
        const before = strands[i];
        draw(lane, "line", { class: "wait", x1: endX(before.start + before.length), x2: startX(strand.start), y1: y, y2: y });
      });
      if (!strands.length) draw(lane, "text", { class: "stop none", x: startX(thread.start) + 2, y: y + 4 }, "\u2715 had no room to start");
      lane.addEventListener("click", () => choose(trace, thread.strands[0]));
    }
    arrows(trace, svg, { endX, startX, laneY, gutter });
    trace.strands.forEach((strand, number) => {
      const x = startX(strand.start), y = laneY(strand.thread);
      const long = Math.max(3, endX(strand.start + strand.length) - x);
      const injected = strand.injected.reduce((n, [, ids]) => n + ids.length, 0);
      const bar = draw(svg, "g", {
        class: `strand${strand.critical ? " critical" : ""}`, "data-strand": number, tabindex: 0, role: "button",
        "aria-label": `strand ${strand.id}, ${plural(strand.length, "token")}`,
      });
      draw(bar, "rect", { x, y: y - BAR / 2, width: long, height: BAR, rx: 2.5 });
      if (long > 8 + 7 * String(strand.length).length) {
        draw(bar, "text", { x: x + long / 2, y: y + 3.5, "text-anchor": "middle" }, String(strand.length));
      }
      draw(bar, "title", {}, `${strand.id}: ${injected} injected, ${strand.length} sampled, tokens ${strand.start} to ${strand.start + strand.length} of the span${strand.critical ? "; on the critical path" : ""}`);
      const pick = (event) => { event.stopPropagation(); choose(trace, number); };
      bar.addEventListener("click", pick);
      bar.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick(event); }
      });
    });
    mark();
  }

  // Arrows come from `after`: into a child's first strand (spawn), and from a child's last into its parent's (return).
  function arrows(trace, svg, { endX, startX, laneY, gutter }) {
    const messages = new Map(trace.threads.map((thread) => [thread.id, thread.message.length]));
    const layer = draw(svg, "g", { class: "arrows" });
    for (const strand of trace.strands) {
      const into = startX(strand.start), y = laneY(strand.thread);
      const edges = strand.after.map((i) => trace.strands[i]).filter((before) => before.thread !== strand.thread);
      const spawners = edges.filter((before) => strand.thread.startsWith(before.thread + "."));
      const returned = edges.filter((before) => !spawners.includes(before));
      for (const before of spawners) {
        const trunk = into - 0.62 * gutter, from = laneY(before.thread), ended = endX(before.start + before.length);
        draw(layer, "path", { class: "spawn", d: `M${ended},${from} H${trunk} V${y} H${into - 4}` });
        head(layer, "spawn", into, y);
      }
      for (const before of returned) {
        const trunk = into - 0.38 * gutter, from = laneY(before.thread), ended = endX(before.start + before.length);
        const kind = messages.get(before.thread) ? "found" : "empty";
        draw(layer, "path", { class: kind, d: `M${ended},${from} H${trunk} V${y} H${into - 4}` });
      }
      if (returned.length) head(layer, returned.some((one) => messages.get(one.thread)) ? "found" : "empty", into, y);
    }
  }
  function head(layer, kind, x, y) {
    draw(layer, "path", { class: `${kind} head`, d: `M${x},${y} l-6,-3.2 v6.4 Z` });
  }
  function key(trace) {
    const entries = [["critical", "on the critical path (its tokens are the span)"]];
    if (trace.threads.length > 1) {
      entries.push(["strand", "side by side with it"], ["wait", "waits for its children"], ["spawn", "spawn"],
        ["found", "returns a message"], ["empty", "returns nothing"]);
    }
    for (const [kind, text] of entries) at("v-key").append(make("span", {}, make("i", { class: kind }), text));
    at("v-key").append(make("span", {}, "shaded gutters make room for the arrows and take no tokens; click a bar to read its strand"));
  }

  // ---- the text of a thread ----------------------------------------------------------------------------------------
  function choose(trace, number) {
    if (number === undefined) return;
    chosen = number;
    mark();
    detail(trace);
  }
  function mark() {
    for (const bar of at("v-timeline").querySelectorAll(".strand")) {
      bar.classList.toggle("chosen", Number(bar.dataset.strand) === chosen);
    }
  }
  function tokens(ids, logprobs) {
    const run = document.createDocumentFragment();
    ids.forEach((id, i) => {
      const text = pieces[id];
      const token = make("span", { class: /^<\/?\w+>$/.test(text) ? "token control" : "token" }, text);
      const logprob = logprobs ? logprobs[i] : null;
      if (logprob !== null && logprob !== undefined) {
        const p = Math.exp(logprob);
        token.title = `logprob ${logprob.toFixed(3)}, probability ${p.toFixed(3)}`;
        token.style.setProperty("--doubt", Math.min(1, -logprob / 2.5).toFixed(2));
        token.classList.add("scored");
      }
      run.append(token, space);
    });
    return run;
  }
  function part(kind, label, ids, logprobs) {
    const text = make("p", { class: "ids" });
    if (ids.length) text.append(tokens(ids, logprobs));
    else text.append(make("i", {}, "nothing"));
    return make("div", { class: `part ${kind}` }, make("em", {}, label), text);
  }
  function detail(trace) {
    const strand = trace.strands[chosen];
    if (!strand) return;
    const thread = trace.threads.find((one) => one.id === strand.thread);
    const where = thread.parent === null ? "the root thread" : `child of ${thread.parent}, depth ${thread.depth}`;
    const title = make("h4", {}, `thread ${thread.id} `, make("small", {}, `${where}; stopped: ${words(thread.stop)}`));
    const blocks = thread.strands.map((number) => {
      const one = trace.strands[number];
      const block = make("div", { class: `block${number === chosen ? " chosen" : ""}` });
      const note = [`tokens ${one.start} to ${one.start + one.length} of the span`, `ended by ${one.stop}`];
      for (const [seen, length] of one.sees) note.push(`sees ${length} tokens of ${seen}`);
      block.append(make("h5", {}, `strand ${one.id} `, make("small", {}, note.join("; "))));
      const senders = one.after.map((i) => trace.strands[i].thread).filter((id) => id !== one.thread);
      block.append(...injectedParts(one.injected, number === thread.strands[0] ? [thread.parent] : senders));
      block.append(part("sampled", `sampled, ${plural(one.length, "token")}`, one.sampled, one.logprobs));
      return block;
    });
    const returned = thread.parent === null ? "answer (message out)" : `message out, to ${thread.parent}`;
    at("v-detail").replaceChildren(title, ...blocks, part("out", returned, thread.message));
  }
  // A control token that the runtime forces opens a message; messages are in the order of the threads that sent them.
  function injectedParts(injected, senders) {
    const parts = [], messages = [];
    for (const [origin, ids] of injected) {
      if (origin === "prompt") parts.push(part("injected", "prompt", ids));
      else if (origin === "copy") parts.push(part("injected", "copied from this trace", ids));
      else if (origin === "message" && messages.length && messages[messages.length - 1].open) {
        messages[messages.length - 1] = { open: false, ids: messages[messages.length - 1].ids.concat(ids) };
      } else messages.push({ open: origin === "forced", ids });
    }
    if (!messages.length) return parts;
    const list = make("div", { class: "ids messages" });
    messages.forEach((message, i) => {
      if (senders.length === messages.length) list.append(make("em", {}, senders[i]));
      list.append(make("span", {}, tokens(message.ids), ...(message.open ? [make("i", {}, "nothing")] : [])));
    });
    if (senders.length !== messages.length) list.classList.add("unnamed");
    parts.push(make("div", { class: "part injected" }, make("em", {}, messages.length > 1 ? "messages in" : "message in"), list));
    return parts;
  }

  let before = 0;
  window.addEventListener("resize", () => {
    const width = at("v-timeline").clientWidth;
    if (width === before || !shown[current]) return;
    before = width;
    at("v-timeline").replaceChildren();
    timeline(shown[current]);
  });
  setFilter("all");
})();
