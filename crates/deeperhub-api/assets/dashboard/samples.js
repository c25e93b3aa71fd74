// Samples of the node's statistics that the server keeps, as points for charts.

import { query, read } from "./api.js";

const SPAN_MS = 15 * 60_000;

/** The last 15 minutes. The first read brings all samples, each further one those that are new. */
export class Samples {
  rows = [];
  columns = [];
  nodeId = null;

  async update(nodeId, signal) {
    // Another node answers now, for example after a restart under another name.
    if (nodeId !== this.nodeId) this.rows = [];
    this.nodeId = nodeId;
    const after = this.rows.at(-1)?.[0];
    const { columns, samples } = await read(`v1/stats/samples${query({ after })}`, { signal });
    this.columns = columns;
    this.rows.push(...samples);
    const oldest = this.now() - SPAN_MS;
    this.rows = this.rows.filter((row) => row[0] >= oldest);
  }

  /** Returns the server's time of the newest sample, so that both clocks need not agree. */
  now() {
    return this.rows.at(-1)?.[0] ?? Date.now();
  }

  /** Returns the points of a value. */
  values(column, convert = (value) => value) {
    const index = this.columns.indexOf(column);
    return this.rows.map((row) => ({ at: row[0], value: row[index] === null ? null : convert(row[index]) }));
  }

  /** Returns the points of a total's growth per second. */
  rates(column) {
    const index = this.columns.indexOf(column);
    return this.rows.slice(1).map((row, before) => {
      const earlier = this.rows[before];
      const seconds = (row[0] - earlier[0]) / 1000;
      const growth = row[index] - earlier[index];
      // A total that falls counts from a new start.
      const isKnown = row[index] !== null && earlier[index] !== null && growth >= 0 && seconds > 0;
      return { at: row[0], value: isKnown ? growth / seconds : null };
    });
  }

  /** Returns how much a total grew within the last `milliseconds` that are known. */
  growth(column, milliseconds = SPAN_MS) {
    const index = this.columns.indexOf(column);
    const since = this.now() - milliseconds;
    const rows = this.rows.filter((row) => row[0] >= since);
    return rows.slice(1).reduce((sum, row, before) => sum + Math.max(0, row[index] - rows[before][index]), 0);
  }
}
