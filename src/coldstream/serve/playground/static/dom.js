// Elements without HTML in strings: text is always text.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  set(element, properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

export function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Properties; `class`, `for`, `role`, `aria-*` and `data-*` are attributes; functions called `on...` listen.
function set(element, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (/^(class|for|role|aria-.*|data-.*)$/.test(name)) element.setAttribute(name, value);
    else element[name] = value;
  }
}

// Writes only what changed: a text that is set again would be read aloud again, and costs a layout.
export function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

export function say(sentence) {
  $("say").textContent = sentence;
}

let count = 0;
export const freshId = (prefix) => `${prefix}-${(count += 1)}`;

export async function toClipboard(content) {
  if (navigator.clipboard !== undefined) {
    await navigator.clipboard.writeText(content);
    return;
  }
  // Without TLS, and not on this machine, browsers give pages no clipboard but this one.
  const area = el("textarea", { value: content, class: "hidden" });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
