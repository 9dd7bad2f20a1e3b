// The line that says how things are, read aloud where one cannot see it.

import { Problem } from "./api.js";
import { byId, element } from "./dom.js";

export function say(text) {
  byId("status").classList.remove("problem", "starting");
  byId("status").replaceChildren(...worded(text));
}

/** A sentence's parts: what stands between `backticks` is to be typed. */
export function worded(text) {
  return text.split("`").map((part, i) => (i % 2 ? element("code", {}, part) : part));
}

/** Say what went wrong, and what to do. */
export function fail(problem) {
  say(problem instanceof Problem ? problem.message : `Something went wrong in the page: ${problem.message}. Reload it, and try again.`);
  byId("status").classList.add("problem");
}
