// The page begins here: texts, then the view that the address names, and again whenever it changes.

import { ask } from "./box.js";
import * as deployment from "./deployment.js";
import { say } from "./element.js";
import * as list from "./list.js";
import * as start from "./start.js";
import { choose, current, fill, load, text } from "./text.js";

const main = document.getElementById("main");
const line = document.getElementById("line");
let leave = () => {};
let visit = 0;

function tellLine(state) {
  line.dataset.state = state;
  say(line, state === "lost" ? text("line.lost") : state === "failed" ? text("line.failed") : "");
}

function view() {
  const [, name, id] = location.hash.split("/");
  if (name === "new") return [start.show, "#/new"];
  if (name === "d" && id) return [deployment.show, ""];
  return [list.show, "#/"];
}

/** Shows what the address names. A view that is overtaken while it loads is ended at once. */
async function go() {
  const mine = (visit += 1);
  leave();
  leave = () => {};
  const [show, at] = view();
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === at) link.ariaCurrent = "page";
    else link.ariaCurrent = null;
  }
  try {
    const end = await show(main, tellLine, location.hash.split("/")[2]);
    if (mine === visit) leave = end;
    else end();
  } catch (error) {
    if (mine !== visit) return;
    const words = Object.assign(document.createElement("p"), { className: "alert", textContent: error.message });
    words.setAttribute("role", "alert");
    main.replaceChildren(words);
  }
}

await load();
fill(document);
const language = document.getElementById("language");
language.value = current();
language.onchange = () => {
  choose(language.value);
  fill(document);
  go();
};
document.getElementById("sign-out").onclick = async () => {
  await ask("/session", { method: "DELETE" });
  location.reload();
};
// The address names the view, so this link moves the focus by itself.
document.querySelector(".skip").onclick = (event) => {
  event.preventDefault();
  main.focus();
};
window.onhashchange = async () => {
  await go();
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
};
go();
