// An answer's Markdown as elements. marked reads it (its lexer alone); the elements are made here one by one, so that
// no HTML of an answer's is ever parsed: it is shown as the text that it is. Pictures are links: nothing is fetched.

import { lexer } from "./marked.js";
import { el } from "./dom.js";

const LONGEST = 200_000; // characters; what is longer is shown as it is written
const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const NAMED = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };
const PLAIN = new Set(["paragraph", "text", "space"]);

// The blocks of an answer in `box`; while it grows, only what changed is made anew.
export class Formatted {
  #made = [];

  constructor(box) {
    this.box = box;
  }

  // Returns false where the text is too long or too deep to be formatted; the box is then left empty.
  draw(source, { whole = false } = {}) {
    const tokens = blocks(source);
    if (tokens === null) {
      this.clear();
      return false;
    }
    let same = 0;
    while (!whole && same < tokens.length && tokens[same].raw === this.#made[same]?.raw) same += 1;
    for (const { element } of this.#made.splice(same)) element.remove();
    for (const token of tokens.slice(same)) {
      const element = block(token);
      this.#made.push({ raw: token.raw, element });
      this.box.append(element);
    }
    return true;
  }

  clear() {
    this.#made = [];
    this.box.replaceChildren();
  }
}

// Whether formatting would change what is seen.
export function isPlain(source) {
  return (blocks(source) ?? []).every((token) => PLAIN.has(token.type) && (token.tokens ?? []).every((item) => item.type === "text"));
}

function blocks(source) {
  if (source.length > LONGEST) return null;
  try {
    return lexer(source, { gfm: true, breaks: true }).filter((token) => token.type !== "space" && token.type !== "def");
  } catch {
    return null; // nested deeper than the stack
  }
}

const all = (tokens, make) => (tokens ?? []).map(make);

const BLOCKS = {
  heading: (token) => el("h4", { class: `level-${token.depth}` }, ...all(token.tokens, inline)),
  paragraph: (token) => el("p", {}, ...all(token.tokens, inline)),
  text: (token) => (token.tokens ? el("span", {}, ...all(token.tokens, inline)) : textNode(token.text)),
  code: (token) => el("pre", { tabIndex: 0 }, el("code", {}, token.text)),
  blockquote: (token) => el("blockquote", {}, ...all(token.tokens, block)),
  list: (token) => {
    const list = el(token.ordered ? "ol" : "ul", {}, ...all(token.items, (item) => el("li", {}, ...all(item.tokens, block))));
    if (token.ordered && Number.isInteger(token.start)) list.start = token.start;
    return list;
  },
  table: (token) => {
    const row = (kind) => (cells) => el("tr", {}, ...cells.map((cell) => el(kind, {}, ...all(cell.tokens, inline))));
    const head = el("thead", {}, row("th")(token.header));
    return el("div", { class: "table", tabIndex: 0 }, el("table", {}, head, el("tbody", {}, ...token.rows.map(row("td")))));
  },
  hr: () => el("hr"),
  checkbox: (token) => (token.checked ? "☑ " : "☐ "),
};

const INLINES = {
  text: (token) => (token.tokens ? el("span", {}, ...all(token.tokens, inline)) : textNode(token.text)),
  escape: (token) => token.text,
  strong: (token) => el("strong", {}, ...all(token.tokens, inline)),
  em: (token) => el("em", {}, ...all(token.tokens, inline)),
  del: (token) => el("del", {}, ...all(token.tokens, inline)),
  codespan: (token) => el("code", {}, token.text),
  br: () => el("br"),
  link: (token) => link(token.href, all(token.tokens, inline), token.raw),
  image: (token) => link(token.href, [token.text || token.href], token.raw),
  checkbox: BLOCKS.checkbox,
};

// What has no element here (HTML, and what a later marked may know) is shown as it was written.
const block = (token) => (Object.hasOwn(BLOCKS, token.type) ? BLOCKS[token.type](token) : el("p", {}, token.raw));
const inline = (token) => (Object.hasOwn(INLINES, token.type) ? INLINES[token.type](token) : token.raw);

function link(href, children, raw) {
  if (!SCHEMES.has(URL.canParse(href) ? new URL(href).protocol : "")) return raw;
  return el("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
}

function textNode(text) {
  const spelled = text.replace(/&(?:#(\d{1,7})|#x([0-9a-f]{1,6})|(\w+));/gi, (whole, decimal, hex, name) => {
    if (name !== undefined) return Object.hasOwn(NAMED, name) ? NAMED[name] : whole;
    const code = decimal === undefined ? Number.parseInt(hex, 16) : Number(decimal);
    return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : whole;
  });
  return document.createTextNode(spelled);
}
