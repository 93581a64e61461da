// What is asked of a person before something is done. A password stays in its field until it is sent, and is cleared then.

import { ask, Refused } from "./box.js";
import { say } from "./element.js";
import { text } from "./text.js";

/** Asks whether to cancel `what`, "deployment" or "node"; true is a yes. */
export function confirmed(what, values = {}) {
  const dialog = document.getElementById("confirm");
  for (const element of dialog.querySelectorAll("[data-part]")) {
    say(element, text("confirm." + `${what}.${element.dataset.part}`, values));
  }
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((answer) => {
    dialog.onclose = () => answer(dialog.returnValue === "yes");
  });
}

/** Takes up what is not done of a deployment, with the password that the box no longer has; returns the new one's id. */
export function retried(path) {
  const dialog = document.getElementById("retry");
  const form = dialog.querySelector("form");
  const [alert, password] = [form.querySelector("[role=alert]"), form.elements.password];
  const [yes, no] = [form.elements.yes, form.elements.no];
  alert.hidden = true;
  form.reset();
  return new Promise((answer) => {
    let begun = null;
    dialog.onclose = () => {
      form.reset();
      answer(begun);
    };
    no.onclick = () => dialog.close();
    // Once it is asked for, the answer is waited for: the retry may have begun.
    dialog.oncancel = (event) => yes.disabled && event.preventDefault();
    form.onsubmit = async (event) => {
      event.preventDefault();
      yes.disabled = no.disabled = true;
      try {
        const credentials = password.value === "" ? {} : { password: password.value };
        begun = (await ask(`${path}/retry`, { method: "POST", body: { credentials } })).deployment;
        dialog.close();
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        say(alert, error.message);
        alert.hidden = false;
      } finally {
        yes.disabled = no.disabled = false;
      }
    };
    dialog.showModal();
  });
}
