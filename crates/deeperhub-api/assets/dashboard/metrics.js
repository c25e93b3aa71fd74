// Metrics in Prometheus' text format.

const SAMPLE = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/** Returns the samples by the name of their metric: each with its labels and its value. */
export function parseMetrics(text) {
  const metrics = new Map();
  for (const line of text.split("\n")) {
    const found = line.startsWith("#") ? null : SAMPLE.exec(line);
    if (!found) continue;
    const labels = Object.fromEntries(
      [...(found[2] ?? "").matchAll(LABEL)].map(([, label, value]) => [label, value]),
    );
    const samples = metrics.get(found[1]) ?? [];
    samples.push({ labels, value: Number(found[3]) });
    metrics.set(found[1], samples);
  }
  return metrics;
}
