// Every text of the page, in the reader's language. The texts stand in strings.json and nowhere else.

const LANGUAGES = ["en", "es"];
const KEPT = "carena-language";

let strings = {};
let language = "en";

/** Loads the texts and picks the language: the one chosen here before, else the browser's first that there is. */
export async function load() {
  strings = await (await fetch("/assets/strings.json")).json();
  const wanted = [localStorage.getItem(KEPT), ...navigator.languages].filter(Boolean).map((tag) => tag.slice(0, 2));
  speak(wanted.find((tag) => LANGUAGES.includes(tag)) ?? "en");
}

/** Changes the language, for this and later visits. */
export function choose(tag) {
  localStorage.setItem(KEPT, tag);
  speak(tag);
}

function speak(tag) {
  language = tag;
  document.documentElement.lang = tag;
}

export function current() {
  return language;
}

/** The text of a key, its {holes} filled from `values`. */
export function text(key, values = {}) {
  const found = strings[key]?.[language] ?? key;
  return found.replace(/\{(\w+)\}/g, (hole, name) => values[name] ?? hole);
}

/** Fills in everything below `root` that names its text. */
export function fill(root) {
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
  for (const element of root.querySelectorAll("[data-label]")) element.ariaLabel = text(element.dataset.label);
  return root;
}

/** The reader's own variety of the language: dates and numbers differ within one. */
function locale() {
  return navigator.languages.find((tag) => tag.slice(0, 2) === language) ?? language;
}

export function time(rfc3339) {
  const style = { dateStyle: "medium", timeStyle: "medium", hourCycle: "h23" };
  return new Intl.DateTimeFormat(locale(), style).format(new Date(rfc3339));
}

export function duration(from, to) {
  const s = Math.max(0, Math.round((new Date(to) - new Date(from)) / 1000));
  const [h, min] = [Math.floor(s / 3600), Math.floor(s / 60) % 60];
  return [h && `${h} h`, (h || min) && `${min} min`, `${s % 60} s`].filter(Boolean).join(" ");
}

export function bytes(count) {
  const unit = count >= 1 << 20 ? [1 << 20, "MiB"] : count >= 1024 ? [1024, "KiB"] : [1, "B"];
  const number = new Intl.NumberFormat(locale(), { maximumFractionDigits: unit[0] === 1 ? 0 : 1 });
  return `${number.format(count / unit[0])} ${unit[1]}`;
}

/** What a deployment is called: its baseline, and that nobody who is trusted has signed it. */
export function title({ baseline, signature }) {
  return signature?.state === "unsigned" ? text("one.titleUnsigned", { baseline }) : text("one.title", { baseline });
}
