// Elements. Text always becomes text nodes, so no name and no payload is ever markup.

// Characters that hide or reorder the text around them: control characters, marks and overrides of
// bidirectional text, zero-width characters.
const INVISIBLE =
  /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/** Returns the text with each invisible character as its escape, so that no two names look alike. */
export function visible(text) {
  return String(text).replace(
    INVISIBLE,
    (character) => "\\u" + character.charCodeAt(0).toString(16).padStart(4, "0"),
  );
}

/**
 * Creates an element. A property that starts with `on` is a listener; `dataset` and `class` are set
 * as such, a boolean sets or leaves out an attribute, anything else is an attribute.
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "value") element.value = value;
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/** Shows a name that others chose: isolated from the text around it, with invisible characters escaped. */
export function name(text, className = "") {
  return h("bdi", { class: `name ${className}`.trim(), dir: "ltr" }, visible(text));
}

export function setText(element, text) {
  // An unchanged text is left alone: selections stay, and screen readers don't repeat it.
  if (element.textContent !== text) element.textContent = text;
}

/** Returns a table whose rows `sync` fills. `columns` are texts or `{label, class}`. */
export function table(caption, columns, className = "") {
  const body = h("tbody");
  const heads = columns.map((column) => {
    const { label, class: columnClass } = typeof column === "string" ? { label: column } : column;
    return h("th", { scope: "col", class: columnClass }, label);
  });
  const element = h(
    "table",
    { class: className },
    h("caption", { class: "unseen" }, caption),
    h("thead", {}, h("tr", {}, heads)),
    body,
  );
  // Focusable, so that the keyboard can scroll it on a narrow screen.
  const scroller = h(
    "div",
    { class: "scroller", tabindex: "0", role: "region", "aria-label": caption },
    element,
  );
  return { element: scroller, body };
}

/**
 * Makes the children of `parent` show `items`, in their order. Elements with the same key are kept,
 * with their focus and selection: `create` makes one, and `update` shows the current item in it.
 */
export function sync(parent, items, keyOf, create, update) {
  const known = parent.syncedChildren ?? new Map();
  const next = new Map();
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  let place = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    if (next.has(key)) continue;
    const element = known.get(key) ?? create(item);
    known.delete(key);
    next.set(key, element);
    update(element, item);
    if (element === place) place = place.nextSibling;
    else parent.insertBefore(element, place);
  }
  for (const element of known.values()) element.remove();
  parent.syncedChildren = next;
  // Moving an element takes its focus.
  if (focused && focused !== document.activeElement && parent.contains(focused))
    focused.focus({ preventScroll: true });
}

/** Shows rows of cells. `cells` returns the texts or elements of an item; elements are kept if `isStatic`. */
export function syncRows(body, items, keyOf, cells) {
  const create = (item) =>
    h(
      "tr",
      {},
      cells(item).map((cell) => h("td", { class: cell.class }, cell.element ?? "")),
    );
  const update = (row, item) =>
    cells(item).forEach((cell, index) => {
      const place = row.children[index];
      if (cell.element === undefined) setText(place, cell.text);
      place.className = cell.class ?? "";
    });
  sync(body, items, keyOf, create, update);
}

/** Returns a cell of numbers for `syncRows`. */
export function figure(text, className = "") {
  return { text, class: `figure ${className}`.trim() };
}

export function button(label, onclick, className = "") {
  return h("button", { type: "button", class: className, onclick }, label);
}

/** Returns a labelled input. */
export function field(label, input, className = "") {
  return h("label", { class: `field ${className}`.trim() }, h("span", {}, label), input);
}
