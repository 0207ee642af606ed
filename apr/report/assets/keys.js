// The keyboard. In a page of its own the view takes keys from anywhere, in a report only when the focus is in it.
const KEYS = {
  ArrowLeft: () => go(state.at - 1), ArrowRight: () => go(state.at + 1),
  Home: () => go(0), End: () => go(state.items.length - 1),
  ArrowDown: () => nextStrand(1), ArrowUp: () => nextStrand(-1), j: () => nextStrand(1), k: () => nextStrand(-1),
  n: () => nextStrand(1, "hits"),
  "/": () => { at("v-search").focus(); at("v-search").select(); },
  t: () => setAxis(axisNow() === "tokens" ? "seconds" : "tokens"),
  s: togglePair,
  x: () => { if (pairing()) { state.active = 1 - state.active; panels.forEach(mark); } },
  Enter: () => panels[state.active]?.element.querySelector('.token[tabindex="0"]')?.focus(),
  Escape: () => panels[state.active]?.element.querySelector(".strand.chosen")?.focus({ preventScroll: true }),
  "?": () => at("v-help").showModal(),
};
const OWN = { range: ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"], button: ["Enter"] };

function pressed(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.defaultPrevented || at("v-help").open) return;
  const target = event.target;
  if (!standalone && !section.contains(target)) return;
  if (target === at("v-search")) {
    if (event.key === "Escape") { target.value = ""; search(""); section.focus({ preventScroll: true }); }
    else if (event.key === "Enter") section.focus({ preventScroll: true });
    return;
  }
  const token = target.closest(".token[data-at]");
  if (token && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
    walk(panelOf(token), token, event.key === "ArrowLeft" ? -1 : 1);
    event.preventDefault();
    return;
  }
  const own = target.closest("button") ? OWN.button : target.type === "range" ? OWN.range : [];
  const act = KEYS[event.key];
  if (target.closest("select") || own.includes(event.key) || !act) return;
  event.preventDefault();
  act();
}
document.addEventListener("keydown", pressed);

let width;
new ResizeObserver(() => {
  if (panelsBox.clientWidth === width) return;
  width = panelsBox.clientWidth;
  for (const panel of panels) delete panel.width;
  if (width && panels[0].trace) lines();
}).observe(panelsBox);
fill();
shell();
refilter();
