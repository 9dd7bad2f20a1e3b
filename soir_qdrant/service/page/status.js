// The line that says how things are, read aloud where one cannot see it.

import { Problem } from "./api.js";
import { byId } from "./dom.js";

export function say(text) {
  byId("status").classList.remove("problem");
  byId("status").textContent = text;
}

/** Say what went wrong, and what to do. */
export function fail(problem) {
  say(problem instanceof Problem ? problem.message : `Something went wrong in the page: ${problem.message}`);
  byId("status").classList.add("problem");
}
