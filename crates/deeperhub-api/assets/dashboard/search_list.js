// The form above a list: what to search, where, and how many items to show.

import { query, read } from "./api.js";
import { button, field, h, setText } from "./dom.js";
import { plural } from "./format.js";

/** Items that a list shows at first, and that "Show more" adds. */
const PAGE = 100;
const MAX_ITEMS = 1000;
/** Pages that one search reads at most: each may be empty while the server looks for matches. */
const MAX_SEARCH_CALLS = 8;

/**
 * Returns a form with the button and the summary of its list. `update(true)` reads and shows the
 * list anew.
 */
export function searchList({ label, placeholder, signal, update }) {
  const input = h("input", { type: "search", maxlength: "255", spellcheck: "false", placeholder });
  const everywhere = h("input", { type: "checkbox" });
  const scope = h("label", { class: "check", hidden: true }, everywhere, "all nodes");
  const summary = h("p", { role: "status" });
  let limit = PAGE;

  /** Updates at once, between two regular updates. */
  async function refresh() {
    try {
      await update(true);
    } catch (error) {
      if (!signal.aborted) fail(error);
    }
  }

  function fail(error) {
    setText(summary, error.message);
  }

  const more = button(
    "Show more",
    () => {
      limit = Math.min(limit + PAGE, MAX_ITEMS);
      void refresh();
    },
    "quiet",
  );
  more.hidden = true;

  const form = h(
    "form",
    {
      class: "search",
      role: "search",
      onsubmit: (event) => {
        event.preventDefault();
        limit = PAGE;
        void refresh();
      },
    },
    field(label, input),
    scope,
    h("button", {}, "Search"),
  );
  read("v1/nodes", { signal }).then(
    ({ nodes }) => {
      scope.hidden = nodes.length < 2;
    },
    () => {},
  );

  return {
    form,
    summary,
    more,
    fail,
    text: () => input.value.trim(),
    /** Reads as many items as are shown. Returns them, and whether there are more. */
    async read(callPath, key, parameters) {
      const items = [];
      let cursor = null;
      for (let calls = 0; calls < MAX_SEARCH_CALLS && items.length < limit; calls += 1) {
        const page = { scope: everywhere.checked ? "cluster" : null, limit: limit - items.length, cursor };
        const answer = await read(callPath + query({ ...parameters, ...page }), { signal });
        items.push(...answer[key]);
        cursor = answer.next_cursor ?? null;
        if (cursor === null) break;
      }
      return { items, hasMore: cursor !== null };
    },
    /** Says how many items match `text`, or `all` without a search. */
    summarize(text, { count, hasMore, all }) {
      const matches = `${plural(count, "match", "matches")}${hasMore ? " so far" : ""}.`;
      setText(summary, text === "" ? all : matches);
      more.hidden = !hasMore || limit >= MAX_ITEMS;
    },
  };
}
