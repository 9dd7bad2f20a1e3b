// Searching by words, and by words that change the thing in the query's picture. Only where the profile reads them.

import { byId } from "./dom.js";

/** searchWords(query): words were entered. searchChanged(): those that change the picture's thing were. */
export function listenToWords({ searchWords, searchChanged }) {
  byId("words").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = value("text");
    const prompts = byId("prompts").value.split("\n").map((line) => line.trim()).filter(Boolean);
    if (text) searchWords({ kind: "text", text, prompts });
  });
  byId("change").addEventListener("submit", (event) => {
    event.preventDefault();
    searchChanged();
  });
}

/** The words that change the picture's thing: {but, instead}, or {} for none. */
export function change() {
  const but = value("but");
  if (!but || byId("change").hidden) return {};
  return value("instead") ? { but, instead: value("instead") } : { but };
}

/** Show the words of a query. reads: whether the profile reads any. image: whether a picture is searched with. */
export function showWords(query, { reads, image }) {
  byId("words").hidden = !reads;
  byId("change").hidden = !reads || !image;
  byId("text").value = query?.kind === "text" ? query.text : "";
  byId("but").value = query?.but ?? "";
  byId("instead").value = query?.instead ?? "";
  if (query?.kind !== "text") return;
  byId("prompts").value = (query.prompts ?? []).join("\n");
  byId("prompting").open ||= Boolean(query.prompts?.length);
}

function value(id) {
  return byId(id).value.trim();
}
