// The page: what is searched (state.js), asked of the service (requests.js) and shown (results.js).

import { letAdd, remove } from "./add.js";
import { address, call, onLoginNeeded } from "./api.js";
import { BoxTool } from "./boxtool.js";
import { drawChips } from "./chips.js";
import { byId, element } from "./dom.js";
import { loadFilters } from "./filterform.js";
import { askForToken } from "./login.js";
import { FIRST, Overview } from "./overview.js";
import { LIMIT, NOTHING, detect, run } from "./requests.js";
import { drawGrid } from "./results.js";
import { summary, title, welcome } from "./sentences.js";
import { listen, openFile, openStored, showFile } from "./source.js";
import { emptyState, fromAddress, isView, placeText, toAddress } from "./state.js";
import { fail, say } from "./status.js";
import { keepTheme } from "./theme.js";
import { Toggles } from "./toggles.js";
import { Viewer } from "./viewer.js";
import { change, listenToWords, showWords } from "./words.js";

let service = { collections: [], reads_text: false, max_bytes: 20e6 };
let state = emptyState();
let source = null; // {file, upload, key, width, height} of a picture that is not in the collection
const sources = new Map(); // all of them by their keys, for the way back
let shown = NOTHING;
let facets = null; // what the collection can be filtered and sorted by
let running = null; // of the search that runs now
const earlier = []; // `after` of the pages of browsing
const MAX_EXAMPLES = 5; // of a lasso: each is encoded anew

const tool = new BoxTool(byId("boxes"), {
  drawn: () => go({ box: tool.box, object: null }),
  picked: (number) => {
    tool.set(tool.objects[number], number);
    go({ box: tool.box, object: number });
  },
  changed: (box) => { byId("whole").disabled = !box; },
  entered: () => searchBox(),
});
const viewer = new Viewer(searchFrom, (image) => remove(state.collection, image.id).then(recount, fail));
const overview = new Overview({
  changed: show,
  picked: (point) => searchFrom(point, point.object),
  lassoed: (points) => searchAlike(points),
});
const toggles = new Toggles(draw);

// -- searching ---------------------------------------------------------------------------------------------

/** Search for a place in the query's picture. */
function go({ box, object }) {
  if (!state.query || isView(state.query) || state.query.kind === "text") {
    if (!source) return say("Choose a picture first.");
    state.query = { kind: "upload", box, ...change() };
  } else if (state.query.kind === "stored") {
    state.query = { kind: "stored", id: state.query.id, object, box: object === null ? box : null, ...change() };
  } else {
    state.query = { kind: "upload", box, ...change() };
  }
  state.offset = 0;
  return search();
}

/** Search for what is in the box now. */
function searchBox() {
  return go({ box: tool.box, object: tool.object >= 0 ? tool.object : null });
}

/** Search for an object of an image of the collection. number: null for its box, or all of it. */
async function searchFrom(image, number) {
  const box = number === null ? (image.box ?? null) : null;
  state.query = { kind: "stored", id: image.id, object: number, box };
  state.offset = 0;
  await openQuery();
  byId("query").scrollIntoView({ block: "nearest" });
  return search();
}

/** Search for what several objects of the collection have in common. */
function searchAlike([first, ...others]) {
  state.examples = others.slice(0, MAX_EXAMPLES).map(({ id, object }) => ({ id, object, box: null }));
  return searchFrom(first, first.object);
}

/** Show the collection: a view's query. */
function show(query) {
  earlier.length = 0;
  Object.assign(state, { query, examples: [], negatives: [], offset: 0 });
  openQuery();
  return search();
}

/** End the search that runs, if one does. Returns the signal of the next. */
function begin() {
  running?.abort();
  running = new AbortController();
  byId("results").removeAttribute("aria-busy");
  return running.signal;
}

/** Go on with another state: what the search before it still brings is of the one that was left. */
function become(next) {
  begin();
  state = next;
}

/** Run what the state says, and show it. push: whether it becomes a new address. */
async function search(push = true) {
  const signal = begin();
  if (push) history.pushState({ earlier: [...earlier], source: source?.key }, "", toAddress(state) || location.pathname);
  if (!state.query) return void greet(signal); // nobody waits for its pictures
  byId("results").setAttribute("aria-busy", "true");
  say(isView(state.query) ? "Looking through the collection …" : "Searching …");
  try {
    shown = await run(state, source, signal, (seconds) => say(`The service is busy: trying again in ${seconds} s …`));
    draw();
    say(summary(state, shown, service));
    if (matchMedia("(max-width: 760px)").matches || (push && isScrolled())) byId("results").scrollIntoView();
  } catch (problem) {
    if (problem.name === "AbortError") return undefined;
    shown = NOTHING;
    draw();
    fail(problem);
  }
  return byId("results").removeAttribute("aria-busy");
}

function isScrolled() {
  return byId("results").getBoundingClientRect().top < 0;
}

function draw() {
  const actions = {
    pick: searchFrom,
    zoom: (image) => viewer.open(state.collection, shown.images, image, shown.search),
    more: (image, object) => refine(state.examples, image, object),
    less: (image, object) => refine(state.negatives, image, object),
  };
  const cards = drawGrid(state.collection, shown, actions);
  overview.draw(state, shown, facets);
  byId("results-title").textContent = title(state.query);
  toggles.show(state.collection, shown, cards);
  const [first, last] = [state.query?.kind === "browse" ? !earlier.length : !state.offset, (shown.next ?? null) === null];
  byId("paging").hidden = Boolean(shown.groups) || (first && last);
  byId("previous").disabled = first;
  byId("next").disabled = last;
  drawChips(state, search);
}

function page(by) {
  if (state.query.kind === "browse") {
    if (by > 0) earlier.push(state.query.after ?? null);
    state.query.after = by > 0 ? shown.next : earlier.pop();
  } else {
    state.offset = by > 0 ? shown.next : Math.max(0, state.offset - LIMIT);
  }
  byId("results").focus();
  return search();
}

// -- more like, not like -----------------------------------------------------------------------------------

function refine(list, image, object) {
  const place = { id: image.id, object: object ?? null, box: (object ?? null) === null ? (image.box ?? null) : null };
  if (!list.some((one) => placeText(one) === placeText(place))) list.push(place);
  state.offset = 0;
  if (!state.query || isView(state.query)) return searchFrom(image, object);
  return search();
}

// -- the query's picture -----------------------------------------------------------------------------------

/** Show the picture that the state searches with. */
async function openQuery() {
  const { query } = state;
  const visible = query?.kind === "stored" || (query?.kind === "upload" && Boolean(source));
  for (const id of ["stage", "keys", "query-actions"]) byId(id).hidden = !visible;
  byId("drop").hidden = visible;
  byId("detect").hidden = query?.kind !== "upload";
  showWords(query, { reads: service.reads_text, image: visible });
  if (!visible) return;
  try {
    if (query.kind === "upload") {
      const own = source;
      await showFile(own);
      if (source !== own || state.query !== query) return; // another was chosen meanwhile
      tool.open(own.width, own.height, own.objects ?? []);
      if (query.box) tool.set(query.box);
      return;
    }
    const image = await openStored(state.collection, query.id);
    if (state.query !== query) return;
    tool.open(image.width, image.height, image.objects.map((object) => object.box));
    const box = query.object === null || query.object === undefined ? query.box : tool.objects[query.object];
    if (box) tool.set(box, query.object ?? -1);
  } catch (problem) {
    fail(problem);
  }
}

async function chooseFile(file) {
  await Promise.allSettled([ready, tool.ready]); // else the page, once it knows the collections, would show its address
  const opened = await openFile(file, service.max_bytes).catch(fail);
  if (!opened) return undefined;
  source = opened;
  sources.set(source.key, source);
  become({ ...emptyState(state.collection), filters: state.filters, group: state.group, query: { kind: "upload", box: null } });
  await openQuery();
  shown = NOTHING;
  draw();
  byId("boxes").focus();
  const how = tool.surface.annotator ? "Draw a box round one thing." : "Choose one thing as it says below the picture.";
  return say(`${how} To search with the whole picture, press Search.`);
}

async function detectObjects() {
  const own = source;
  byId("detect").disabled = true;
  say("Looking for objects …");
  try {
    const objects = await detect(own, undefined, (seconds) => say(`The service is busy: trying again in ${seconds} s …`));
    own.objects = objects;
    if (source !== own) return; // another picture was chosen meanwhile
    tool.showObjects(objects);
    say(objects.length ? `${objects.length} objects. Click one to search for it.` : "No object was found: draw a box.");
  } catch (problem) {
    fail(problem);
  } finally {
    byId("detect").disabled = false;
  }
}

// -- the rest of the page ----------------------------------------------------------------------------------

/** Before the first search: pictures to start from. */
async function greet(signal) {
  shown = NOTHING;
  draw();
  say(welcome(state, service));
  if (!service.collections.some(({ name, count }) => name === state.collection && count)) return;
  try {
    const browsing = { ...state, query: FIRST.browse };
    shown = { ...(await run(browsing, null, signal)), next: null };
    draw();
    if (!shown.images.length) say(summary(browsing, shown, service));
  } catch (problem) {
    if (problem.name !== "AbortError") fail(problem);
  }
}

async function chooseCollection(name) {
  const { kind } = state.query ?? {};
  const own = { upload: { kind, box: tool.box }, text: state.query }; // queries that need no picture of the collection
  const chosen = { ...emptyState(name), query: own[kind] ?? null };
  become(chosen);
  await fillFilters();
  if (state !== chosen) return undefined; // a picture was chosen meanwhile
  await openQuery();
  return search();
}

async function fillFilters() {
  facets = null;
  if (!service.collections.some(({ name }) => name === state.collection)) return;
  facets = await loadFilters(() => state, () => search()).catch(fail) ?? null;
}

/** Show what an address says. */
async function restore() {
  become(fromAddress(location.search));
  source = sources.get(history.state?.source) ?? null;
  earlier.splice(0, earlier.length, ...(history.state?.earlier ?? (state.query?.after ? [null] : [])));
  const first = service.collections.find(({ count }) => count) ?? service.collections[0];
  state.collection ||= first?.name ?? "";
  byId("collection").value = state.collection;
  await fillFilters();
  await openQuery();
  await search(false);
}

/** Where Annotorious is missing: an object is clicked, and a box is moved by keys. */
function sayUndrawable() {
  byId("keys").textContent = "No box can be drawn: page/vendor/annotorious.js could not be loaded. Reload the page with " +
    "Shift. Meanwhile press “Show its objects” and click one, or use the keys: arrows make a box and move it, Shift with " +
    "arrows resizes it, N and P go through the objects, Enter searches.";
  byId("keys").classList.add("problem");
}

function wire() {
  const click = (id, action) => byId(id).addEventListener("click", action);
  click("search", searchBox);
  click("whole", () => tool.set(null));
  click("detect", detectObjects);
  click("another", () => {
    source = null;
    become({ ...emptyState(state.collection), filters: state.filters });
    openQuery();
    search();
  });
  click("browse", () => show({ ...FIRST.browse }));
  click("previous", () => page(-1));
  click("next", () => page(1));
  byId("collection").addEventListener("change", (event) => chooseCollection(event.target.value));
  listenToWords({
    searchWords: (query) => {
      Object.assign(state, { query, offset: 0 });
      openQuery();
      search();
    },
    searchChanged: searchBox,
  });
  listen(chooseFile, say);
  window.addEventListener("popstate", restore);
}

async function start() {
  say(""); // the page's own words are for where no script runs
  keepTheme(byId("theme"));
  onLoginNeeded(askForToken);
  wire();
  try {
    await learn();
  } catch (problem) {
    return fail(problem);
  }
  byId("viewer-remove").hidden = !service.writable;
  if (service.uploads) letAdd(() => state.collection, service.max_bytes, recount);
  return restore();
}

async function learn() {
  service = await call(address("../v1"));
  const options = service.collections.map(({ name, count }) => element("option", { value: name }, `${name} (${count})`));
  byId("collection").replaceChildren(...options);
  if (state.collection) byId("collection").value = state.collection;
  byId("words").hidden = !service.reads_text;
  if (!service.ready) setTimeout(() => learn().catch(() => {}), 3000); // do the models read words?
}

async function recount() {
  await learn(); // the collection has changed
  await fillFilters();
  await search(false);
}

const ready = start();
ready.catch(fail);
tool.ready.catch(sayUndrawable);
