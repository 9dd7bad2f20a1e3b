// What the page says of a search: how many, or what to do. Nothing here touches the page.

import { isFiltered } from "./filters.js";

const TITLES = { browse: "In the collection", map: "Map of the objects", duplicates: "Near-duplicates", ingest: "Last ingest" };

/** After a search. shown: what was found. */
export function summary(state, shown, service) {
  const count = shown.images.length;
  if (countOf(state, service) === 0 && state.query.kind !== "ingest") return empty(state);
  if (shown.map) return ofMap(shown.map);
  if (shown.duplicates) return ofDuplicates(shown);
  if (state.query.kind === "ingest") return ofIngest(shown.ingest);
  if (count && state.query.kind === "browse") return `${pictures(count)}. Click an object to search for it.`;
  if (count) {
    const seconds = (shown.seconds.wait + shown.seconds.search).toFixed(1);
    const groups = shown.groups ? ` in ${inGroups(shown.groups)}` : "";
    return `${pictures(count)}${groups}, the most alike first (${seconds} s).`;
  }
  if (isFiltered(state.filters)) return "No picture passes the filter. Take a condition off under “Filter and group”.";
  if (state.group) return `No picture has the key “${state.group}”. Group by another, or by nothing.`;
  if (state.offset) return "There are no more pictures.";
  return "Nothing was found. Draw the box closer round one thing, or choose another picture.";
}

function inGroups(groups) {
  return groups.length === 1 ? "one group" : `${groups.length} groups`;
}

function ofMap({ points, images, total }) {
  if (!points.length) return "No picture passes the filter. Take a condition off under “Filter and group”.";
  const part = images < total ? `, a sample of ${total}` : "";
  return `${points.length} objects of ${pictures(images)}${part}. Draw a line round some to search for them, or click one.`;
}

function ofDuplicates({ images, groups, duplicates: { images: compared, total } }) {
  const part = compared < total ? `, a sample of ${total}` : "";
  if (!groups.length) return `None of ${pictures(compared)}${part} are so alike. Lower the similarity to see more.`;
  return `${pictures(images.length)} of ${compared}${part} are nearly the same as another, in ${inGroups(groups)}.`;
}

function ofIngest(last) {
  if (!last) return "Nothing is remembered of an ingest: run `soir ingest` again (Qdrant 1.16 or newer keeps it).";
  return last.failures ? `${pictures(last.failures)} could not be put in. Mend them, then run \`soir ingest\` again.` : "Nothing failed.";
}

/** What is shown. query: null before the first search. */
export function title(query) {
  return TITLES[query?.kind ?? "browse"] ?? "Found";
}

/** Before the first search. */
export function welcome(state, service) {
  if (!service.collections.length) return "There is no collection yet. Make one: `soir ingest FOLDER --collection NAME`";
  const count = countOf(state, service);
  if (count === null) return `There is no collection “${state.collection}” here: choose another above.`;
  if (count === 0) return empty(state);
  return `“${state.collection}” holds ${pictures(count)}. Choose a picture to search with, or click a thing in one of these.`;
}

function empty({ collection }) {
  return `The collection “${collection}” is empty. Put pictures in: \`soir ingest FOLDER --collection ${collection}\``;
}

function countOf(state, service) {
  return service.collections.find(({ name }) => name === state.collection)?.count ?? null;
}

function pictures(count) {
  return count === 1 ? "1 picture" : `${count} pictures`;
}
