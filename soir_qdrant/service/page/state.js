// What is being searched, and how it is written into the page's address. Nothing here touches the page.

export const SIMILAR = 0.8; // of near-duplicates, where nothing else was chosen

/** query: null, or {kind: "stored", id, object|box}, {kind: "upload", box}, both also with {but, instead}
 *  (words that change the thing), {kind: "text", text, prompts}, or what shows
 *  the collection: {kind: "browse", after, sort, descending}, {kind: "map", method}, {kind: "duplicates",
 *  threshold}, {kind: "ingest"}. examples, negatives: [{id, object|box}]. */
export function emptyState(collection = "") {
  return {
    collection,
    query: null,
    examples: [],
    negatives: [],
    filters: { labels: [], min: null, values: {}, ranges: {}, json: "" },
    group: "",
    offset: 0,
  };
}

/** The state as an address's search part, "?c=..."; shared with others, it shows them the same. */
export function toAddress(state) {
  const out = new URLSearchParams();
  const { query, filters } = state;
  if (state.collection) out.set("c", state.collection);
  if (query?.kind === "stored") out.set("id", placeText(query));
  if (query?.kind === "upload") out.set("upload", query.box ? query.box.join(",") : "whole");
  if (query?.kind === "text") out.set("text", query.text);
  for (const prompt of query?.prompts ?? []) out.append("prompt", prompt);
  if (query?.but) out.set("but", query.but);
  if (query?.instead) out.set("instead", query.instead);
  if (query?.kind === "browse") out.set("browse", query.after ?? "");
  if (query?.sort) out.set(query.descending ? "descending" : "sort", query.sort);
  if (query?.kind === "map") out.set("map", query.method);
  if (query?.kind === "duplicates") out.set("duplicates", query.threshold);
  if (query?.kind === "ingest") out.set("ingest", "last");
  for (const place of state.examples) out.append("more", placeText(place));
  for (const place of state.negatives) out.append("not", placeText(place));
  for (const label of filters.labels) out.append("label", label);
  if (filters.min !== null) out.set("min", filters.min);
  for (const [key, values] of Object.entries(filters.values)) {
    for (const value of values) out.append("value", JSON.stringify([key, value]));
  }
  for (const [key, range] of Object.entries(filters.ranges)) out.append("range", JSON.stringify([key, ...range]));
  if (filters.json.trim()) out.set("filter", filters.json);
  if (state.group) out.set("group", state.group);
  if (state.offset) out.set("offset", state.offset);
  const text = out.toString();
  return text ? `?${text}` : "";
}

/** The state of an address. What cannot be read is left out. */
export function fromAddress(search) {
  const sent = new URLSearchParams(search);
  const state = emptyState(sent.get("c") ?? "");
  if (sent.has("id")) state.query = withKind(placeOf(sent.get("id")));
  else if (sent.has("upload")) state.query = { kind: "upload", box: boxOf(sent.get("upload")) };
  else if (sent.has("text")) state.query = { kind: "text", text: sent.get("text"), prompts: sent.getAll("prompt") };
  else if (sent.has("browse")) state.query = { ...browsing(sent), after: sent.get("browse") || null };
  else if (sent.has("map")) state.query = { kind: "map", method: sent.get("map") };
  else if (sent.has("duplicates")) state.query = { kind: "duplicates", threshold: Number(sent.get("duplicates")) || SIMILAR };
  else if (sent.has("ingest")) state.query = { kind: "ingest" };
  if (["stored", "upload"].includes(state.query?.kind) && sent.get("but")) {
    Object.assign(state.query, { but: sent.get("but"), instead: sent.get("instead") });
  }
  state.examples = sent.getAll("more").map(placeOf).filter(Boolean);
  state.negatives = sent.getAll("not").map(placeOf).filter(Boolean);
  state.filters.labels = sent.getAll("label");
  if (sent.has("min") && Number(sent.get("min")) >= 0) state.filters.min = Number(sent.get("min"));
  for (const [key, value] of sent.getAll("value").map(listOf)) {
    if (key !== undefined) (state.filters.values[key] ??= []).push(value);
  }
  for (const [key, low, high] of sent.getAll("range").map(listOf)) {
    if (key !== undefined) state.filters.ranges[key] = [low ?? null, high ?? null];
  }
  state.filters.json = sent.get("filter") ?? "";
  state.group = sent.get("group") ?? "";
  state.offset = Math.max(0, Math.floor(Number(sent.get("offset")) || 0));
  return state;
}

function browsing(sent) {
  const descending = sent.has("descending");
  return { kind: "browse", sort: sent.get(descending ? "descending" : "sort") ?? "", descending };
}

/** Whether a query shows the collection, and searches for nothing. */
export function isView(query) {
  return ["browse", "map", "duplicates", "ingest"].includes(query?.kind);
}

/** An id with an object's number or a box: "id~o2" or "id~10,20,30,40". */
export function placeText({ id, object, box }) {
  if (object !== null && object !== undefined) return `${id}~o${object}`;
  return box ? `${id}~${box.join(",")}` : String(id);
}

function placeOf(text) {
  const [id, place = ""] = text.split("~");
  if (!id) return null;
  if (/^o\d+$/.test(place)) return { id, object: Number(place.slice(1)), box: null };
  return { id, object: null, box: boxOf(place) };
}

function withKind(place) {
  return place && { kind: "stored", ...place };
}

function boxOf(text) {
  const numbers = text.split(",").map(Number);
  return numbers.length === 4 && numbers.every(Number.isFinite) && text ? numbers : null;
}

function listOf(text) {
  try {
    const value = JSON.parse(text);
    return Array.isArray(value) ? value : [];
  } catch {
    return [];
  }
}
