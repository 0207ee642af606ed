// State and navigation: which traces, which one, over what, alone or side by side.
const section = at("traces"), panelsBox = at("v-panels"), standalone = document.body.classList.contains("view");
const opening = index.find((line) => line.spawns) ?? index[0];  // the first that spawns, if any does
const state = { outcome: "all", stop: "", source: "", query: "", axis: "tokens", sides: null, items: [[opening]], at: 0, active: 0 };
const found = firstPair();
let panels = [], ticket = 0;
const pairing = () => state.sides !== null;

// ---- filters -------------------------------------------------------------------------------------------------------
const OUTCOMES = {
  all: () => true, correct: (item) => item.some((line) => line.correct === true),
  wrong: (item) => item.some((line) => line.correct === false),
  differ: (item) => item.length > 1 && item[0].correct !== item[1].correct,
};
// One trace, or two side by side: an item is the list of their lines.
function everything() {
  if (pairing()) return pairs(...state.sides);
  return index.filter((line) => state.source === "" || line.source === Number(state.source)).map((line) => [line]);
}
// Filter anew; the trace shown stays if it can.
function refilter() {
  const kept = state.items[state.at] ?? [];
  const asked = state.query.split(/\s+/).filter(Boolean);
  const matches = (line) => asked.every((word) => haystack(line).includes(word));
  let items = everything().filter((item) => !state.stop || item.some((line) => line.stop === state.stop));
  const named = items.filter((item) => item.some(matches));
  state.unnamed = asked.length > 0 && !named.length;  // nothing has these words: look for them in the text alone
  if (!state.unnamed) items = named;
  for (const button of at("v-outcome").children) {
    const kind = button.dataset.kind;
    button.querySelector("b").textContent = count(items.filter(OUTCOMES[kind]).length);
    button.setAttribute("aria-pressed", String(kind === state.outcome));
    button.hidden = kind === "differ" && !pairing();
  }
  state.items = items.filter(OUTCOMES[state.outcome]);
  const place = state.items.findIndex((item) => kept.length && item.some((line) => line === kept[0]));
  state.at = Math.max(0, place);
  return render();
}
function go(to) {
  if (!state.items.length) return;
  state.at = (to + state.items.length) % state.items.length;
  render();
}

// ---- drawing -------------------------------------------------------------------------------------------------------
function shell() {
  panels = (pairing() ? ["A", "B"] : [""]).map((side) => {
    const element = at("v-panel").content.firstElementChild.cloneNode(true);
    element.querySelector(".side").textContent = side;
    element.setAttribute("aria-label", side ? `trace ${side}` : "trace");
    return { element, chosen: 0 };
  });
  panelsBox.classList.toggle("pair", pairing());
  panelsBox.replaceChildren(...panels.map((panel) => panel.element));
}
async function render() {
  const mine = ++ticket, item = state.items[state.at];
  place();
  if (!item) {
    panelsBox.hidden = true;
    at("v-said").textContent = "No trace is like that: widen the filters.";
    return;
  }
  let traces;
  try {
    traces = await Promise.all(item.map((line) => load(line.number)));
  } catch (error) {
    if (mine !== ticket) return;
    panelsBox.hidden = true;
    at("v-said").textContent = `This trace cannot be shown: ${error.message}`;
    return;
  }
  if (mine !== ticket) return;  // another was asked for meanwhile
  show(item, traces);
  setTimeout(() => { if (mine === ticket) prefetch(); }, 40);  // after the paint, and not while one leafs through
}
function prefetch() {
  for (const near of [state.at + 1, state.at - 1]) {
    for (const line of state.items[near] ?? []) load(line.number).catch(() => {});  // said when it is shown
  }
}
function show(item, traces) {
  const held = panelsBox.contains(document.activeElement);
  panelsBox.hidden = false;
  panels.forEach((panel, i) => {
    if (panel.line !== item[i]) panel.chosen = traces[i].threads[0].strands[0] ?? 0;
    const spelling = spellings[sources[item[i].source].spelling];
    Object.assign(panel, { line: item[i], trace: traces[i], spelling, query: state.query });
    heading(panel);
    detail(panel);
  });
  lines();
  if (held && !panelsBox.contains(document.activeElement)) section.focus({ preventScroll: true });
}
function axisNow() {
  return state.axis === "seconds" && panels.every((panel) => panel.line?.timed) ? "seconds" : "tokens";
}
// All timelines, at one scale.
function lines() {
  const axis = axisNow(), timed = panels.every((panel) => panel.line.timed);
  const upTo = Math.max(...panels.map((panel) => reach(panel.trace, axis)));
  const column = Math.max(...panels.map((panel) => namesWidth(panel.trace)));
  for (const panel of panels) {
    timeline(panel, axis, upTo, column);
    panel.hits = strandsWith(panel, state.query);
    mark(panel);
  }
  for (const button of at("v-axis").children) button.setAttribute("aria-pressed", String(button.dataset.axis === axis));
  at("v-seconds").disabled = !timed;
  at("v-seconds").title = timed ? "over seconds (t)" : "this trace has no times";
  said();
  section.dataset.drawn = panels.map((panel) => panel.line.number).join(" ");
  section.dispatchEvent(new CustomEvent("drawn"));
}
function said() {
  const inText = panels.reduce((n, panel) => n + panel.hits.length, 0);
  at("v-said").textContent = !state.query ? "" : `${state.unnamed ? "No problem, answer or verdict has these words. " : ""}`
    + `\u201c${state.query}\u201d stands in the text of ${plural(inText, "strand")} shown here.`;
}
function place() {
  const n = state.items.length, slider = at("v-slider");
  at("v-place").textContent = n ? `${count(state.at + 1)} of ${count(n)}` : "none";
  slider.max = Math.max(1, n);
  slider.value = state.at + 1;
  slider.disabled = n < 2;
  slider.setAttribute("aria-valuetext", `${pairing() ? "pair" : "trace"} ${state.at + 1} of ${n}`);
  at("v-pair").setAttribute("aria-pressed", String(pairing()));
  at("v-sides").hidden = !pairing();
  at("v-source").hidden = pairing() || sources.length < 2;
}

// ---- strands -------------------------------------------------------------------------------------------------------
function mark(panel) {
  const timelineBox = panel.element.querySelector(".timeline"), hit = new Set(panel.hits);
  panel.element.classList.toggle("active", pairing() && panels[state.active] === panel);
  for (const one of timelineBox.querySelectorAll(".strand")) {
    const i = Number(one.dataset.strand), chosen = i === panel.chosen;
    one.classList.toggle("chosen", chosen);
    one.classList.toggle("hit", hit.has(i));
    one.setAttribute("tabindex", chosen ? 0 : -1);
    one.setAttribute("aria-pressed", String(chosen));
  }
}
function choose(panel, number, focus) {
  if (number === undefined || !panel.trace.strands[number]) return;
  panel.chosen = number;
  state.active = panels.indexOf(panel);
  panels.forEach(mark);
  detail(panel);
  const box = panel.element.querySelector(".timeline"), one = box.querySelector(".strand.chosen");
  const top = box.firstElementChild.clientHeight;
  const y = one.querySelector("rect").y.baseVal.value + top;
  if (y < box.scrollTop + top + 4) box.scrollTop = y - top - 30;
  else if (y > box.scrollTop + box.clientHeight - 30) box.scrollTop = y - box.clientHeight + 40;
  if (focus) one.focus({ preventScroll: true });
}
// The next strand (by 1) or the one before (-1), in the order of lanes; with `among`, the next of these, round and round.
function nextStrand(by, among) {
  const panel = panels[Math.min(state.active, panels.length - 1)];
  if (!panel.trace) return;
  const order = panel.trace.threads.flatMap((thread) => thread.strands), here = order.indexOf(panel.chosen);
  const wanted = among && [...order.slice(here + 1), ...order.slice(0, here + 1)].find((one) => panel[among].includes(one));
  choose(panel, among ? wanted : order[Math.min(order.length - 1, Math.max(0, here + by))], true);
}
function panelOf(target) {
  return panels.find((panel) => panel.element.contains(target));
}
panelsBox.addEventListener("click", (event) => {
  const panel = panelOf(event.target), bar = event.target.closest(".strand"), laneOf = event.target.closest(".lane");
  if (bar) choose(panel, Number(bar.dataset.strand), true);
  else if (laneOf) choose(panel, panel.trace.threads[Number(laneOf.dataset.lane)].strands[0]);
});
for (const kind of ["pointerover", "focusin"]) {
  panelsBox.addEventListener(kind, (event) => {
    const token = event.target.closest(".token[data-at]");
    if (token) about(panelOf(token), token);
  });
}

// ---- what is switched ----------------------------------------------------------------------------------------------
function setAxis(axis) {
  if (axis === "seconds" && !panels.every((panel) => panel.line?.timed)) return;
  state.axis = axis;
  if (state.items.length) lines();
}
function setSides(sides) {
  state.sides = sides;
  state.active = 0;
  if (!sides && state.outcome === "differ") state.outcome = "all";
  if (sides) for (const [i, id] of [[0, "v-a"], [1, "v-b"]]) at(id).value = sides[i];
  shell();
  return refilter();
}
function togglePair() {
  if (found) setSides(pairing() ? null : found);
}
function search(text) {
  state.query = text.trim().toLowerCase().replace(/\s+/g, " ");
  refilter();
}

function option(value, text) {
  return make("option", { value }, text);
}
function fill() {
  for (const kind of Object.keys(OUTCOMES)) {
    const button = make("button", { type: "button", "data-kind": kind }, `${kind} `, make("b", {}, ""));
    button.addEventListener("click", () => { state.outcome = kind; refilter(); });
    at("v-outcome").append(button);
  }
  const stops = new Map();
  for (const line of index) stops.set(line.stop, (stops.get(line.stop) ?? 0) + 1);
  at("v-stop").append(option("", "any stop"), ...[...stops].map(([stop, n]) => option(stop, `${words(stop)} (${count(n)})`)));
  at("v-stop").addEventListener("change", (event) => { state.stop = event.target.value; refilter(); });
  at("v-source").append(option("", "all sources"), ...sources.map((source, i) => option(i, source.label)));
  at("v-source").addEventListener("change", (event) => { state.source = event.target.value; refilter(); });
  for (const [i, id] of [[0, "v-a"], [1, "v-b"]]) {
    at(id).append(...sources.map((source, number) => option(number, source.label)));
    at(id).addEventListener("change", (event) => {
      setSides(state.sides.map((side, k) => (k === i ? Number(event.target.value) : side)));
    });
  }
  at("v-previous").addEventListener("click", () => go(state.at - 1));
  at("v-next").addEventListener("click", () => go(state.at + 1));
  at("v-slider").addEventListener("input", (event) => go(Number(event.target.value) - 1));
  at("v-search").addEventListener("input", (event) => search(event.target.value));
  at("v-tokens").addEventListener("click", () => setAxis("tokens"));
  at("v-seconds").addEventListener("click", () => setAxis("seconds"));
  at("v-pair").addEventListener("click", togglePair);
  at("v-pair").disabled = !found;
  if (!found) at("v-pair").title = "no problem has two traces to lay side by side";
  at("v-keys").addEventListener("click", () => at("v-help").showModal());
}
