// The page's elements: templates of index.html, with their parts by name. Text goes in as text, never as markup.

import { fill } from "./text.js";

/** A copy of a template: `{ root, NAME: element of data-part="NAME" … }`. */
export function make(id) {
  const root = fill(document.getElementById(id).content.cloneNode(true));
  const made = { root: root.children.length === 1 ? root.firstElementChild : root };
  for (const element of root.querySelectorAll("[data-part]")) made[element.dataset.part] = element;
  return made;
}

/** Sets a text only if it is another one: screen readers hear changes, and nothing is laid out anew for nothing. */
export function say(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

export function list(element, lines) {
  const joined = lines.join("\n");
  if (element.dataset.shown === joined) return;
  element.dataset.shown = joined;
  element.replaceChildren(...lines.map((line) => Object.assign(document.createElement("li"), { textContent: line })));
}

/** At most once in `ms`, and once more at the end if it was asked for meanwhile. */
export function calm(ms, act) {
  let timer = null;
  let again = false;
  return function run() {
    if (timer) return void (again = true);
    act();
    timer = setTimeout(() => {
      timer = null;
      if (again) [again] = [false, run()];
    }, ms);
  };
}
