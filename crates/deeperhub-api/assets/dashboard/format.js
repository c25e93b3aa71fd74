// Texts for numbers and times.

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const NONE = "–";

const isNone = (number) => number === null || number === undefined || Number.isNaN(number);

export function whole(number) {
  return isNone(number) ? NONE : WHOLE.format(number);
}

/** Returns a number of at most three digits with a suffix: `12.3K`. */
export function short(number) {
  if (isNone(number)) return NONE;
  return number !== 0 && Math.abs(number) < 0.01 ? "<0.01" : SHORT.format(number);
}

export function rate(perSecond) {
  return isNone(perSecond) ? NONE : `${short(perSecond)}/s`;
}

export function bytes(number) {
  if (isNone(number)) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  let value = number;
  while (Math.abs(value) >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = value < 10 && unit > 0 ? 1 : 0;
  return `${value.toFixed(digits)} ${units[unit]}`;
}

export function byteRate(perSecond) {
  return isNone(perSecond) ? NONE : `${bytes(perSecond)}/s`;
}

export function percent(share) {
  return isNone(share) ? NONE : `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`;
}

export function micros(number) {
  if (isNone(number)) return NONE;
  if (number < 1000) return `${Math.round(number)} µs`;
  if (number < 1_000_000) return `${(number / 1000).toPrecision(3)} ms`;
  return `${(number / 1_000_000).toPrecision(3)} s`;
}

/** Returns a span of time with its two largest units: `3 h 12 min`. */
export function span(milliseconds) {
  if (isNone(milliseconds)) return NONE;
  let seconds = Math.max(0, Math.round(milliseconds / 1000));
  const parts = [];
  for (const [unit, size] of [
    ["d", 86_400],
    ["h", 3600],
    ["min", 60],
    ["s", 1],
  ]) {
    const count = Math.floor(seconds / size);
    seconds -= count * size;
    if (count > 0 || (unit === "s" && parts.length === 0)) parts.push(`${count} ${unit}`);
    else if (parts.length > 0) break;
  }
  return parts.slice(0, 2).join(" ");
}

export function clock(unixMilliseconds) {
  return new Date(unixMilliseconds).toLocaleTimeString("en-GB");
}

export function plural(count, one, many = `${one}s`) {
  return `${whole(count)} ${count === 1 ? one : many}`;
}
