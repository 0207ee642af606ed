// The traces: an index line of each at once, the rest of a trace inflated when it is wanted.
const { sources, spellings, traces: index } = JSON.parse(at("apr-index").textContent);
const KEPT = 12;  // inflated traces
const inflated = new Map();
index.forEach((line, number) => { line.number = number; });

// What a search looks into, made when the first is made.
function haystack(line) {
  line.hay ??= [line.title, line.answer ?? "no answer", line.verdict, words(line.stop), line.stop, line.problem,
    VERDICTS.get(line.correct)[2], `sample ${line.sample}`, `step ${line.step}`, sources[line.source].label,
  ].join("\n").toLowerCase();
  return line.hay;
}

// A promise of the whole trace. The newest ones are kept.
function load(number) {
  const known = inflated.get(number);
  inflated.delete(number);
  inflated.set(number, known ?? inflate(number));
  for (const oldest of inflated.keys()) {
    if (inflated.size <= KEPT) break;
    inflated.delete(oldest);
  }
  return inflated.get(number);
}
async function inflate(number) {
  let element = at(`apr-trace-${number}`);
  while (!element && document.readyState === "loading") {  // the page is still being read
    await new Promise((resume) => { setTimeout(resume, 5); });
    element = at(`apr-trace-${number}`);
  }
  if (!element) throw new Error(`this page is cut off: trace ${number + 1} of ${index.length} is missing`);
  const packed = Uint8Array.from(atob(element.textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

// ---- two traces of one problem -------------------------------------------------------------------------------------
// By source and problem: its traces in order.
const byProblem = sources.map(() => new Map());
for (const line of index) {
  const of = byProblem[line.source];
  if (!of.has(line.problem)) of.set(line.problem, []);
  of.get(line.problem).push(line);
}
// Pairs of lines: the k-th trace of a problem in source `a` beside the k-th in `b`; within one source, each beside the next.
function pairs(a, b) {
  const found = [];
  for (const [problem, ours] of byProblem[a]) {
    const theirs = a === b ? ours.slice(1) : byProblem[b].get(problem) ?? [];
    for (let k = 0; k < Math.min(ours.length, theirs.length); k++) found.push([ours[k], theirs[k]]);
  }
  return found.sort((one, other) => one[0].number - other[0].number);
}
// The first two sources that share a problem, or one with several traces of a problem; undefined if there is neither.
function firstPair() {
  const choices = sources.flatMap((_, a) => sources.map((_, b) => [a, b]));
  const apart = choices.filter(([a, b]) => a < b), alone = choices.filter(([a, b]) => a === b);
  return [...apart, ...alone].find(([a, b]) => pairs(a, b).length);
}
