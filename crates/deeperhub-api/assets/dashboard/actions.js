// Actions: each is asked for once, in a dialog that then shows what was answered.

import { call, hasKey } from "./api.js";
import { button, h } from "./dom.js";
import { jsonView } from "./json.js";

/** Returns a payload as JSON: JSON as it was typed, so that numbers keep their digits, or a text. */
export function payload(typed) {
  try {
    JSON.parse(typed);
    return typed;
  } catch {
    return JSON.stringify(typed);
  }
}

/**
 * Asks for an action, and makes its call if the answer is yes. `effect` says what happens, `inputs`
 * are fields of the dialog, and `body` returns the body of the call. Resolves to the status of the
 * answer, or to null if nothing was done.
 */
export function act({
  title,
  effect,
  verb,
  method,
  path,
  body = () => undefined,
  inputs = [],
  isHarmful = false,
}) {
  const answer = h("div", { class: "answer", "aria-live": "polite" });
  const confirm = h("button", { class: isHarmful ? "harmful" : "" }, verb);
  const cancel = button("Cancel", () => dialog.close());
  const form = h(
    "form",
    { onsubmit: send },
    h("h2", { id: "action-title" }, title),
    h("p", {}, effect),
    inputs,
    h("p", { class: "call" }, `${method} /${path}`),
    h("div", { class: "buttons" }, confirm, cancel),
    answer,
  );
  const dialog = h("dialog", { "aria-labelledby": "action-title" }, form);
  let status = null;

  async function send(event) {
    event.preventDefault();
    if (status !== null) return dialog.close();
    confirm.disabled = true;
    try {
      const result = await call(method, path, { body: body() });
      status = result.status;
      show(result);
    } catch (error) {
      show({ status: 0, text: JSON.stringify(error.message) });
      confirm.disabled = false;
      return;
    }
    confirm.remove();
    cancel.textContent = "Close";
    cancel.focus();
  }

  function show(result) {
    const isGood = result.status >= 200 && result.status < 300;
    const summary = result.status === 0 ? "No answer" : `${isGood ? "Done" : "Refused"}: ${result.status}`;
    answer.replaceChildren(h("p", { class: isGood ? "good" : "bad" }, summary));
    if (result.status === 401)
      answer.append(h("p", {}, hasKey() ? "The key is wrong." : "The key is missing or wrong."));
    if (result.text !== "") answer.append(jsonView(result.text, 3));
  }

  document.body.append(dialog);
  dialog.showModal();
  // A harmful action is not what the Enter key does at once.
  if (isHarmful) cancel.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(status);
    });
  });
}
