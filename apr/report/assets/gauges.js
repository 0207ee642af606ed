// Above the timeline: what was asked, answered and judged, and what it cost beside its limits and budgets.

// Cost, its name, its limit's and its budget's key.
const GAUGES = [
  ["context", "context", "context", "context"], ["span_sampled", "span", "span", "span_sampled"],
  ["work", "work", "work", "work"], ["threads", "threads", "threads", "threads"], ["width", "width", "width", "width"],
  ["depth", "depth", "depth", "depth"], ["seconds", "seconds", "seconds", "seconds"],
];
const MEANINGS = {
  context: "tokens in the largest context of any strand", span_sampled: "sampled tokens on the longest dependent chain",
  work: "tokens of all strands, injected ones included", threads: "threads ever started, the root included",
  width: "threads alive at once", depth: "nesting of threads", seconds: "wall clock, under the load of that run",
};
const finite = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);

function heading(panel) {
  const { line, trace, element } = panel;
  const [tone, sign, word] = VERDICTS.get(line.correct);
  const find = (name) => element.querySelector(name);
  const places = [sources.length > 1 || pairing() ? sources[line.source].label : "", `problem ${line.problem}`,
    `sample ${line.sample}`, line.step ? `step ${line.step}` : "", words(trace.protocol)];
  find(".place").textContent = places.filter(Boolean).join("  \u00b7  ");
  find(".badge").className = `badge ${tone}`;
  find(".badge").textContent = `${sign} ${word}`;
  find(".title").textContent = line.title;
  find(".answer").replaceChildren(line.answer === null ? "no answer" : line.answer, " ",
    make("small", {}, `${line.verdict}; root stopped: ${words(line.stop)}`));
  find(".gauges").replaceChildren(...GAUGES.flatMap((gauge) => meter(trace, ...gauge)));
  find(".facts").replaceChildren(...facts(trace));
}

// One cost as a bar; limit and budget as lines across it, the part beyond the lower of them hatched.
function meter(trace, cost, label, limitKey, budgetKey) {
  const value = finite(trace.costs[cost]);
  if (value === null) return [];
  const given = [["limit", finite(trace.limits[limitKey])], ["budget", finite(trace.budgets[budgetKey])]];
  const marks = given.filter(([, mark]) => mark !== null);
  const most = Math.max(value, ...marks.map(([, mark]) => mark)) || 1;
  const box = make("div", { class: "meter", title: MEANINGS[cost] },
    make("em", {}, label), " ", make("b", {}, short(value)));
  for (const [kind, mark] of marks) {
    const over = value > mark;
    box.append(" ", make("small", { class: over ? "beyond" : "" }, `${over ? "over " : ""}${kind} ${short(mark)}`));
  }
  if (marks.length) {
    const full = (share) => `${(100 * share) / most}%`;
    const track = make("div", { class: "track", "aria-hidden": "true" });
    const within = Math.min(value, ...marks.map(([, mark]) => mark));
    track.append(make("i", { class: "spent", style: `width:${full(within)}` }));
    if (value > within) {
      track.append(make("i", { class: "excess", style: `left:${full(within)};width:${full(value - within)}` }));
    }
    for (const [kind, mark] of marks) track.append(make("i", { class: `mark ${kind}`, style: `left:${full(mark)}` }));
    box.append(track);
  }
  return [box];
}
function facts(trace) {
  const known = new Set(GAUGES.flatMap(([, , limit, budget]) => [`limits ${limit}`, `budgets ${budget}`]));
  const groups = {
    parallelism: {
      sampled: trace.costs.parallelism_sampled, "all tokens": trace.costs.parallelism, prefilled: trace.costs.prefilled,
    },
    reward: trace.reward,
  };
  for (const group of ["limits", "budgets"]) {
    groups[group] = Object.fromEntries(Object.entries(trace[group]).filter(([name]) => !known.has(`${group} ${name}`)));
  }
  return Object.entries(groups).flatMap(([group, values]) => {
    const given = Object.entries(values).filter(([, value]) => value !== undefined);
    if (!given.length) return [];
    return [make("div", {}, make("em", {}, group), ...given.map(([name, value]) =>
      make("span", {}, `${words(name)} `, make("b", {}, typeof value === "number" ? short(value) : String(value)))))];
  });
}
