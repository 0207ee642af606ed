// Making elements. Text from outside becomes text nodes and attribute values only, never markup.
const SVG = "http://www.w3.org/2000/svg";
const at = (id) => document.getElementById(id);

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
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
const words = (name) => name.replace(/_/g, " ");
const count = (n) => n.toLocaleString("en");
// A number as people read it: whole if it is, else three digits.
const short = (n) => (Number.isInteger(n) ? count(n) : n >= 100 ? count(Math.round(n)) : String(Number(n.toPrecision(3))));
const clock = (seconds) => short(Number(seconds.toFixed(seconds < 10 ? 2 : 1)));
const VERDICTS = new Map([
  [true, ["good", "\u2713", "correct"]], [false, ["bad", "\u2717", "wrong"]], [null, ["", "?", "not verified"]],
]);
