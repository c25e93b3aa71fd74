// JSON as a tree that folds. It shows the text as it arrived: JSON.parse would round large numbers.

import { button, h, visible } from "./dom.js";

/** Longest text of a scalar that is shown at once. */
const MAX_SCALAR_CHARACTERS = 400;
/** Children of an object or array that are shown at once. */
const MAX_CHILDREN = 100;

/** Returns JSON, or any other text, as an element. Values down to `depth` are unfolded. */
export function jsonView(text, depth = 1) {
  const node = parse(text);
  const tree = node ? nodeView(text, node, depth) : scalar(text);
  return h("div", { class: "json" }, tree);
}

/** Returns the text of one key's value in an object, or null. */
export function member(text, key) {
  const entry = parse(text)?.children?.find((child) => child.key === JSON.stringify(key));
  return entry ? text.slice(entry.start, entry.end) : null;
}

/** Parses JSON to nodes with their places in the text. Returns null if it is invalid. */
function parse(text) {
  try {
    JSON.parse(text);
  } catch {
    return null;
  }
  return new Scanner(text).value();
}

/** Finds the values in a text that is known to be valid. */
class Scanner {
  constructor(text) {
    this.text = text;
    this.at = 0;
  }

  value() {
    this.skip();
    const start = this.at;
    const first = this.text[start];
    const node = { start, end: start, first, children: null };
    if (first === "{" || first === "[") {
      node.children = this.children(first === "{");
    } else if (first === '"') {
      this.string();
    } else {
      const scalarText = /[^\s,\]}]*/y;
      scalarText.lastIndex = start;
      this.at += scalarText.exec(this.text)[0].length;
    }
    node.end = this.at;
    return node;
  }

  children(isObject) {
    const children = [];
    this.at += 1;
    for (;;) {
      this.skip();
      const character = this.text[this.at];
      if (character === "}" || character === "]") {
        this.at += 1;
        return children;
      }
      if (character === ",") {
        this.at += 1;
        continue;
      }
      let key = null;
      if (isObject) {
        const start = this.at;
        this.string();
        key = this.text.slice(start, this.at);
        this.skip();
        // The colon.
        this.at += 1;
      }
      children.push({ ...this.value(), key });
    }
  }

  string() {
    this.at += 1;
    while (this.text[this.at] !== '"') this.at += this.text[this.at] === "\\" ? 2 : 1;
    this.at += 1;
  }

  skip() {
    while (" \t\r\n".includes(this.text[this.at] ?? "x")) this.at += 1;
  }
}

function nodeView(text, node, depth) {
  const label = node.key ? [h("span", { class: "json-key" }, cut(node.key)), ": "] : [];
  if (node.children === null || node.children.length === 0) {
    return h("div", {}, label, scalar(text.slice(node.start, node.end)));
  }
  const count = node.children.length;
  const kind = node.first === "{" ? `{${count} ${count === 1 ? "key" : "keys"}}` : `[${count}]`;
  const details = h(
    "details",
    { open: depth > 0 },
    h("summary", {}, label, h("span", { class: "json-kind" }, kind)),
  );
  // Children are created when they are first shown, so a huge value costs little.
  const fill = () => {
    if (details.childElementCount === 1) details.append(childrenView(text, node, depth - 1));
  };
  if (depth > 0) fill();
  else details.addEventListener("toggle", fill, { once: true });
  return details;
}

function childrenView(text, node, depth) {
  const list = h("div", { class: "json-children" });
  let shown = 0;
  const more = () => {
    const end = Math.min(shown + MAX_CHILDREN, node.children.length);
    list.append(...node.children.slice(shown, end).map((child) => nodeView(text, child, depth)));
    shown = end;
    const left = node.children.length - shown;
    if (left > 0) {
      const next = button(
        `${left} more`,
        () => {
          next.remove();
          more();
        },
        "quiet",
      );
      list.append(next);
    }
  };
  more();
  return list;
}

function scalar(text) {
  const kind = text.startsWith('"') ? "json-string" : "json-scalar";
  const shown = h("span", { class: kind }, cut(text));
  if (text.length <= MAX_SCALAR_CHARACTERS) return shown;
  const more = button(
    `${text.length - MAX_SCALAR_CHARACTERS} more characters`,
    () => {
      shown.textContent = visible(text);
      more.remove();
    },
    "quiet",
  );
  return h("span", {}, shown, " ", more);
}

function cut(text) {
  const isLong = text.length > MAX_SCALAR_CHARACTERS;
  return visible(isLong ? `${text.slice(0, MAX_SCALAR_CHARACTERS)}…` : text);
}
