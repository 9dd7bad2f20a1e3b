// From the page's state to a request for the service.

import { Problem, address, call, json } from "./api.js";
import { toFilter } from "./filters.js";

export const LIMIT = 24;
export const NOTHING = { images: [], groups: null, next: null, search: null };

/** Search, or show the collection. source: {file, upload} of a picture that is not in the collection, else null.
 *  waiting(seconds): the service is busy. Returns {images, groups, next, search}, of a view also what it shows. */
export async function run(state, source, signal, waiting) {
  const { kind } = state.query;
  if (kind in VIEWS) return VIEWS[kind](state, signal, waiting);
  const options = { ...common(state) };
  const url = address(`collections/${encodeURIComponent(state.collection)}/search`);
  if (kind !== "upload") {
    options.query = kind === "text" ? text(state.query) : { ...place(state.query), ...change(state.query) };
    return shaped(await call(url, json(options, signal), waiting));
  }
  if (!source?.file) {
    throw new Problem("This address was made with a picture that is not in the collection: choose it again.", 0);
  }
  return shaped(await uploaded(url, options, state.query, source, signal, waiting));
}

/** The picture goes along once; then the service knows it by a name, for a while. */
async function uploaded(url, options, query, source, signal, waiting) {
  const own = { box: query.box, ...change(query) };
  if (source.upload) {
    try {
      return await call(url, json({ ...options, query: { upload: source.upload, ...own } }, signal), waiting);
    } catch (problem) {
      if (problem.status !== 410) throw problem;
      source.upload = null;
    }
  }
  const body = new FormData();
  body.set("image", source.file);
  body.set("request", JSON.stringify({ ...options, ...own }));
  const answer = await call(url, { method: "POST", body, signal }, waiting);
  source.upload = answer.upload;
  return answer;
}

function common(state) {
  const options = { limit: LIMIT, filter: filterOf(state) };
  if (state.examples.length) options.examples = state.examples.map(place);
  if (state.negatives.length) options.negatives = state.negatives.map(place);
  if (state.group) options.group_by = state.group;
  else options.offset = state.offset;
  return options;
}

function place({ id, object, box }) {
  const named = { id: /^\d+$/.test(String(id)) && Number.isSafeInteger(Number(id)) ? Number(id) : id };
  if ((object ?? null) !== null) return { ...named, object };
  return box ? { ...named, box } : named;
}

function text({ text: words, prompts }) {
  return prompts?.length ? { text: words, prompts } : { text: words };
}

/** The words that change the thing in a picture. */
function change({ but, instead }) {
  if (!but) return {};
  return instead ? { but, instead_of: instead } : { but };
}

function filterOf(state) {
  try {
    return toFilter(state.filters);
  } catch (error) {
    throw new Problem(`The filter is no JSON: ${error.message}. Mend it, or empty its field.`, 0);
  }
}

const VIEWS = {
  async browse(state, signal, waiting) {
    const { after, sort, descending } = state.query;
    const parameters = { limit: LIMIT, after, ...(sort ? { sort, descending: Boolean(descending) } : {}) };
    const { images, next } = await view(state, "images", { ...parameters, filter: filterText(state) }, signal, waiting);
    return { ...NOTHING, images, next };
  },
  async map(state, signal, waiting) {
    const parameters = { method: state.query.method, filter: filterText(state) };
    return { ...NOTHING, map: await view(state, "map", parameters, signal, waiting) };
  },
  async duplicates(state, signal, waiting) {
    const answer = await view(state, "duplicates", { threshold: state.query.threshold }, signal, waiting);
    const groups = answer.groups.map(({ similarity, images }) => ({
      key: `${images.length} pictures, similarity ${similarity.toFixed(3)} and more`, hits: images,
    }));
    return { ...NOTHING, images: groups.flatMap(({ hits }) => hits), groups, duplicates: answer };
  },
  async ingest(state, signal, waiting) {
    return { ...NOTHING, ingest: await view(state, "ingest", {}, signal, waiting) };
  },
};

function view(state, what, parameters, signal, waiting) {
  return call(address(`collections/${encodeURIComponent(state.collection)}/${what}`, parameters), { signal }, waiting);
}

function filterText(state) {
  const filter = filterOf(state);
  return filter && JSON.stringify(filter);
}

function shaped({ hits, groups, next_offset: next, search, seconds }) {
  return { images: groups ? groups.flatMap((group) => group.hits) : hits, groups, next, search, seconds };
}

/** The objects of a picture that is not in the collection. */
export async function detect(source, signal, waiting) {
  const body = new FormData();
  if (source.upload) body.set("upload", source.upload);
  else body.set("image", source.file);
  try {
    const answer = await call(address("objects"), { method: "POST", body, signal }, waiting);
    source.upload = answer.upload;
    return answer.objects.map((object) => object.box);
  } catch (problem) {
    if (problem.status !== 410 || !source.upload) throw problem;
    source.upload = null;
    return detect(source, signal, waiting);
  }
}
