// A line chart as SVG, drawn by hand.

import { h, setText } from "./dom.js";
import { clock } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 64;
const SPAN_MS = 15 * 60_000;

function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/**
 * A chart of the last 15 minutes. `labels` name its lines, `format` makes texts of values. With the
 * pointer or the arrow keys, a reader moves over the points.
 */
export class LineChart {
  constructor(title, labels, format) {
    this.title = title;
    this.labels = labels;
    this.format = format;
    this.lines = labels.map((_, index) => svg("path", { class: `line line-${index}` }));
    this.mark = svg("line", { class: "mark", y1: 0, y2: HEIGHT, visibility: "hidden" });
    this.picture = svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }),
      ...this.lines,
      this.mark,
    );
    this.top = h("span", { class: "chart-top" });
    this.readout = h("span", { class: "chart-readout" });
    this.element = h(
      "div",
      {
        class: "chart",
        role: "img",
        tabindex: "0",
        onpointermove: (event) => this.point((event.offsetX / this.picture.clientWidth) * WIDTH),
        onpointerleave: () => this.leave(),
        onblur: () => this.leave(),
        onkeydown: (event) => this.onKey(event),
      },
      this.top,
      this.picture,
      h(
        "span",
        { class: "chart-foot", "aria-hidden": "true" },
        h("span", {}, "15 min ago"),
        this.readout,
        h("span", {}, "now"),
      ),
    );
    this.points = labels.map(() => []);
    this.selected = null;
  }

  /** Draws the lines: for each label a list of `{at, value}`, with null for missing values. */
  draw(points, now) {
    this.points = points;
    this.start = now - SPAN_MS;
    const values = points
      .flat()
      .map((point) => point.value)
      .filter((value) => value !== null);
    const highest = Math.max(0, ...values);
    this.scale = highest > 0 ? (HEIGHT - 4) / highest : 0;
    points.forEach((line, index) => this.lines[index].setAttribute("d", this.outline(line)));
    setText(this.top, values.length > 0 ? `max ${this.format(highest)}` : "no values yet");
    const summary = points.map((line, index) => `${this.labels[index]}: ${this.describe(line)}`);
    this.element.setAttribute("aria-label", `${this.title}, last 15 minutes. ${summary.join("; ")}`);
  }

  describe(line) {
    const values = line.map((point) => point.value).filter((value) => value !== null);
    if (values.length === 0) return "no values";
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return `now ${this.format(values.at(-1))}, from ${this.format(low)} to ${this.format(high)}`;
  }

  x(at) {
    return ((at - this.start) / SPAN_MS) * WIDTH;
  }

  outline(line) {
    let path = "";
    let isDrawing = false;
    for (const { at, value } of line) {
      if (value === null) {
        isDrawing = false;
        continue;
      }
      const y = HEIGHT - 1 - value * this.scale;
      path += `${isDrawing ? "L" : "M"}${this.x(at).toFixed(1)} ${y.toFixed(1)}`;
      // A single point is a line without length, which round ends make visible.
      if (!isDrawing) path += "h0";
      isDrawing = true;
    }
    return path;
  }

  onKey(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const last = this.points[0].length - 1;
    if (step === undefined || last < 0) return;
    event.preventDefault();
    this.select(Math.min(last, Math.max(0, (this.selected ?? last + 1) + step)));
  }

  /** Shows the values of the point next to a place. */
  point(x) {
    const distances = this.points[0].map((point) => Math.abs(this.x(point.at) - x));
    if (distances.length > 0) this.select(distances.indexOf(Math.min(...distances)));
  }

  select(index) {
    const at = this.points[0][index].at;
    const texts = this.points.map((line, number) => {
      const value = line[index]?.value ?? null;
      const label = this.labels.length > 1 ? `${this.labels[number]} ` : "";
      return label + (value === null ? "–" : this.format(value));
    });
    this.selected = index;
    setText(this.readout, `${clock(at)}: ${texts.join(", ")}`);
    this.mark.setAttribute("x1", this.x(at));
    this.mark.setAttribute("x2", this.x(at));
    this.mark.setAttribute("visibility", "visible");
  }

  leave() {
    this.selected = null;
    setText(this.readout, "");
    this.mark.setAttribute("visibility", "hidden");
  }
}
