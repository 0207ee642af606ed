// The text of a thread: its strands, the messages in and out, and of each token how sure the model was.
const CONTROL = /^<\/?\w+>$/;

function pieceOf(panel, id) {
  return panel.spelling.pieces[id] ?? "\ufffd";
}
// Which of `ids` spell a part of a place where `query` (lower case) stands in their text.
function hits(panel, ids, query) {
  const found = new Set();
  if (!query) return found;
  const starts = [];
  let text = "";
  for (const id of ids) {
    starts.push(text.length);
    text += pieceOf(panel, id).toLowerCase() + panel.spelling.space;
  }
  for (let place = text.indexOf(query), i = 0; place >= 0; place = text.indexOf(query, place + 1)) {
    while (i + 1 < starts.length && starts[i + 1] <= place) i++;
    for (let k = i; k < starts.length && starts[k] < place + query.length; k++) found.add(k);
  }
  return found;
}
// Strands of the panel's trace whose text, injected or sampled, contains `query`.
function strandsWith(panel, query) {
  if (!query) return [];
  return panel.trace.strands.flatMap((strand, i) => {
    const ids = [...strand.injected.flatMap(([, run]) => run), ...strand.sampled];
    return hits(panel, ids, query).size ? [i] : [];
  });
}

function versionOf(strand, i) {
  return strand.versions.find(([, start, end]) => start <= i && i < end)?.[0];
}
function aboutToken(panel, strand, i) {
  const said = [`token ${i + 1} of ${strand.sampled.length}`, `id ${strand.sampled[i]}`];
  const logprob = strand.logprobs ? strand.logprobs[i] : undefined, version = versionOf(strand, i);
  if (logprob === null) said.push("logprob minus infinity");
  else if (logprob !== undefined) said.push(`logprob ${logprob.toFixed(3)}`, `probability ${Math.exp(logprob).toFixed(3)}`);
  else said.push("no logprob");
  said.push(version === undefined ? "no policy version" : `policy version ${version}`);
  return said.join("; ");
}

// `strand`: whose sampled tokens these are; injected ones have none, and no logprobs.
function tokens(panel, ids, strand) {
  const run = document.createDocumentFragment(), marked = hits(panel, ids, panel.query);
  const number = strand ? panel.trace.strands.indexOf(strand) : -1;
  ids.forEach((id, i) => {
    const text = pieceOf(panel, id);
    const token = make("span", { class: `token${CONTROL.test(text) ? " control" : ""}${marked.has(i) ? " hit" : ""}` }, text);
    if (strand) {
      const logprob = strand.logprobs ? strand.logprobs[i] : undefined;
      token.tabIndex = -1;
      token.dataset.at = `${number} ${i}`;
      token.title = aboutToken(panel, strand, i);
      if (logprob !== undefined) {
        token.classList.add("scored");
        token.style.setProperty("--doubt", logprob === null ? "1" : Math.min(1, -logprob / 2.5).toFixed(2));
      }
    }
    run.append(token, panel.spelling.space);
  });
  return run;
}
function part(panel, kind, label, ids, strand) {
  const text = make("p", { class: "ids" });
  text.append(ids.length ? tokens(panel, ids, strand) : make("i", {}, "nothing"));
  return make("div", { class: `part ${kind}` }, make("em", {}, label), text);
}

function detail(panel) {
  const { trace } = panel, strand = trace.strands[panel.chosen], box = panel.element.querySelector(".detail");
  if (!strand) return box.replaceChildren(make("p", { class: "note" }, "This trace has no strands."));
  const thread = trace.threads.find((one) => one.id === strand.thread);
  const where = thread.parent === null ? "the root thread" : `child of ${thread.parent}, depth ${thread.depth}`;
  const title = make("h4", {}, `thread ${thread.id} `, make("small", {}, `${where}; stopped: ${words(thread.stop)}`));
  const blocks = thread.strands.map((number) => block(panel, thread, number));
  const returned = thread.parent === null ? "answer (message out)" : `message out, to ${thread.parent}`;
  box.replaceChildren(title, ...blocks, part(panel, "out", returned, thread.message));
  box.querySelector(".block.chosen .sampled .token")?.setAttribute("tabindex", 0);
  about(panel, null);
}
function block(panel, thread, number) {
  const one = panel.trace.strands[number];
  const element = make("div", { class: `block${number === panel.chosen ? " chosen" : ""}`, "data-block": number });
  const note = [`tokens ${count(one.start)} to ${count(one.start + one.length)} of the sampled span`];
  if (one.times[1]) note.push(`seconds ${clock(one.times[0])} to ${clock(one.times[1])}`);
  note.push(`ended by ${one.stop}`);
  for (const [seen, length] of one.sees) note.push(`sees ${length} tokens of ${seen}`);
  if (one.cached) note.push(`${one.cached} found in the cache`);
  element.append(make("h5", {}, `strand ${one.id} `, make("small", {}, note.join("; "))));
  const children = new Set(panel.trace.threads.filter((other) => other.parent === thread.id).map((other) => other.id));
  const senders = one.after.map((i) => panel.trace.strands[i].thread).filter((id) => children.has(id));
  element.append(...injectedParts(panel, one.injected, number === thread.strands[0] ? [thread.parent] : senders));
  element.append(part(panel, "sampled", sampledLabel(one), one.sampled, one));
  return element;
}
function sampledLabel(strand) {
  const said = [`sampled, ${plural(strand.length, "token")}`];
  const scores = (strand.logprobs || []).filter((one) => one !== null);
  if (scores.length) said.push(`mean logprob ${(scores.reduce((a, b) => a + b, 0) / scores.length).toFixed(3)}`);
  const versions = [...new Set(strand.versions.map(([version]) => version))];
  if (versions.length === 1) said.push(`policy version ${versions[0]}`);
  else if (versions.length) {
    said.push(`policy versions ${strand.versions.map(([v, a, b]) => `${v} (tokens ${a + 1} to ${b})`).join(", ")}`);
  }
  return said.join("; ");
}
// A control token that the runtime forces opens a message; messages are in the order of the threads that sent them.
function injectedParts(panel, injected, senders) {
  const parts = [], messages = [];
  for (const [origin, ids] of injected) {
    if (origin === "prompt") parts.push(part(panel, "injected", "prompt", ids));
    else if (origin === "copy") parts.push(part(panel, "injected", "copied from this trace", ids));
    else if (origin === "message" && messages.length && messages[messages.length - 1].open) {
      messages[messages.length - 1] = { open: false, ids: messages[messages.length - 1].ids.concat(ids) };
    } else messages.push({ open: origin === "forced", ids });
  }
  if (!messages.length) return parts;
  const list = make("div", { class: "ids messages" }), named = senders.length === messages.length;
  messages.forEach((message, i) => {
    if (named) list.append(make("em", {}, senders[i] ?? ""));
    list.append(make("span", {}, tokens(panel, message.ids), ...(message.open ? [make("i", {}, "nothing")] : [])));
  });
  if (!named) list.classList.add("unnamed");
  parts.push(make("div", { class: "part injected" }, make("em", {}, messages.length > 1 ? "messages in" : "message in"), list));
  return parts;
}

// The line that tells of the token under the pointer or the focus; with none, what the shading means.
function about(panel, token) {
  const box = panel.element.querySelector(".inspector");
  box.classList.toggle("idle", !token);
  if (!token) {
    box.replaceChildren(
      "Underlined: what the model doubted. Point at a sampled token, or press Enter, for its logprob and policy version.");
    return;
  }
  const [number, i] = token.dataset.at.split(" ").map(Number), strand = panel.trace.strands[number];
  box.replaceChildren(
    make("b", { class: "ids" }, pieceOf(panel, strand.sampled[i])), " ", make("span", {}, aboutToken(panel, strand, i)));
}
// Move the focus by `by` sampled tokens of the same strand.
function walk(panel, token, by) {
  const [number, i] = token.dataset.at.split(" ").map(Number);
  const next = panel.element.querySelector(`.token[data-at="${number} ${i + by}"]`);
  if (!next) return;
  token.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}
