// The form that starts a deployment. Passwords stay in its fields until they are sent, and are cleared then.

import { ask, Refused } from "./box.js";
import { make, say } from "./element.js";
import { text } from "./text.js";

/** Shows the form. */
export async function show(main, line) {
  const view = make("view-new");
  const { baselines } = await ask("/api/v1/baselines");
  line("");
  const select = view.form.elements.baseline;
  select.replaceChildren(...baselines.map(({ id, version, name }) => new Option(`${id} ${version}`, name)));
  const about = () => {
    const chosen = baselines.find(({ name }) => name === select.value);
    const components = chosen?.components.map(({ title, version }) => `${title} (${version})`).join("; ");
    say(view.about, chosen ? text("new.about", { title: chosen.title, components }) : "");
    const why = chosen?.signature.why;
    view.unsigned.hidden = !why;
    say(view.unsigned, why ? text("signature." + chosen.signature.state, { why }) : "");
  };
  select.onchange = about;
  about();
  const add = () => {
    const group = make("group");
    say(group.legend, text("new.group"));
    group.remove.onclick = () => {
      group.root.remove();
      number(view.groups);
      view.add.focus();
    };
    view.groups.append(group.root);
    number(view.groups);
    return group.root;
  };
  add();
  view.add.onclick = () => add().querySelector("textarea").focus();
  view.form.onsubmit = (event) => {
    event.preventDefault();
    submit(view);
  };
  main.replaceChildren(view.root);
  return () => {};
}

/** The only group cannot be removed. */
function number(groups) {
  for (const button of groups.querySelectorAll(".remove")) button.hidden = groups.children.length === 1;
}

async function submit(view) {
  const form = view.form;
  view.alert.hidden = true;
  form.classList.add("tried");
  if (!form.checkValidity()) {
    complain(view, text("new.incomplete"));
    form.querySelector(":invalid:not(fieldset)").focus();
    return;
  }
  const nodes = [...view.groups.children].flatMap((group) => {
    const value = (name) => group.querySelector(`[name=${name}]`).value;
    const addresses = value("addresses").split(/[\s,;]+/).filter(Boolean);
    const [user, password, privilege] = [value("user").trim(), value("password"), value("privilege")];
    return addresses.map((address) => ({ address, user, password, privilege }));
  });
  view.submit.disabled = true;
  try {
    const { baseline, reboot, dry_run } = form.elements;
    const options = { reboot: reboot.value };
    const body = { baseline: baseline.value, dry_run: dry_run.checked, options, nodes };
    const { deployment } = await ask("/api/v1/deployments", { method: "POST", body });
    form.reset();
    location.hash = `#/d/${deployment}`;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    complain(view, error.message);
  } finally {
    view.submit.disabled = false;
  }
}

function complain(view, words) {
  say(view.alert, words);
  view.alert.hidden = false;
}
