// Looking at a collection: its images in an order, a map of its objects, near-duplicates, what failed to get in.

import { byId, element } from "./dom.js";
import { ObjectMap } from "./map.js";
import { SIMILAR } from "./state.js";

const ORDERS = {
  "": "as stored", name: "name", objects: "number of objects", largest: "size of the largest object", pixels: "pixels",
};
const METHODS = { pca: "PCA", tsne: "t-SNE" };
const OUTCOMES = { added: "added", updated: "made anew", skipped: "were there already" };

/** The first query of each view. */
export const FIRST = {
  browse: { kind: "browse", after: null, sort: "", descending: false },
  map: { kind: "map", method: "tsne" },
  duplicates: { kind: "duplicates", threshold: SIMILAR },
  ingest: { kind: "ingest" },
};

export class Overview {
  /** changed(query): the view is to be shown so. picked(point), lassoed(points): see ObjectMap. */
  constructor({ changed, picked, lassoed }) {
    this.changed = changed;
    this.map = new ObjectMap({ picked, lassoed });
    for (const button of document.querySelectorAll("[data-view]")) {
      button.addEventListener("click", () => changed({ ...FIRST[button.dataset.view] }));
    }
  }

  /** Show what the query's view has, beside the images. facets: of the collection, or null. */
  draw({ collection, query }, shown, facets) {
    for (const button of document.querySelectorAll("[data-view]")) {
      button.setAttribute("aria-pressed", String(button.dataset.view === query?.kind));
    }
    const controls = this.controls(query, shown, facets);
    byId("controls").hidden = !controls.length;
    byId("controls").replaceChildren(...controls);
    const parts = shown.map?.points.length ? [this.map.frame] : shown.ingest ? ofIngest(shown.ingest) : [];
    byId("overview").hidden = !parts.length;
    byId("overview").replaceChildren(...parts);
    if (shown.map?.points.length) this.map.show(collection, shown.map.points);
  }

  controls(query, shown, facets) {
    if (query?.kind === "browse") return this.orders(query, facets);
    if (shown.map?.points.length) return this.methods(query, shown.map);
    if (shown.duplicates) return [this.threshold(query)];
    return [];
  }

  orders(query, facets) {
    const keys = (facets?.keys ?? []).filter(({ kind }) => kind !== "boolean").map(({ key }) => [key, key]);
    const first = { ...query, after: null };
    const order = choice("Order", [...Object.entries(ORDERS), ...keys], query.sort, (sort) => this.changed({ ...first, sort }));
    const box = element("input", {
      type: "checkbox", checked: query.descending, disabled: !query.sort,
      on: { change: (event) => this.changed({ ...first, descending: event.target.checked }) },
    });
    return [order, element("label", { class: "toggle" }, box, " largest first")];
  }

  methods(query, { methods }) {
    const named = methods.map((method) => [method, METHODS[method] ?? method]);
    const zoom = (text, label, by) =>
      element("button", { type: "button", "aria-label": label, on: { click: () => this.map.enlarge(by) } }, text);
    return [
      choice("Laid out by", named, query.method, (method) => this.changed({ ...query, method })),
      zoom("−", "Smaller", 1 / 1.5),
      zoom("+", "Larger", 1.5),
    ];
  }

  threshold(query) {
    const field = element("input", {
      type: "number", min: 0.5, max: 1, step: 0.01, value: query.threshold,
      on: { change: (event) => this.changed({ ...query, threshold: Math.min(Math.max(Number(event.target.value), 0.5), 1) }) },
    });
    return element("label", { class: "field" }, "Similarity of at least ", field);
  }
}

function choice(text, options, value, chosen) {
  const choices = options.map(([key, name]) => element("option", { value: key, selected: key === value }, name));
  const select = element("select", { on: { change: (event) => chosen(event.target.value) } }, ...choices);
  return element("label", { class: "field" }, `${text} `, select);
}

/** The last ingest. */
function ofIngest({ time, counts, failures, failed, left_out: leftOut }) {
  const outcomes = Object.entries(counts).map(([outcome, count]) => `${count} ${OUTCOMES[outcome] ?? outcome}`);
  const parts = [
    element("p", {}, `${new Date(time).toLocaleString()}: ${[...outcomes, `${failures} failed`].join(", ")}.`),
  ];
  if (failed.length) parts.push(table(failed));
  if (failed.length < failures) parts.push(element("p", { class: "hint" }, `The first ${failed.length} are listed.`));
  if (leftOut.length) parts.push(element("h3", {}, "Left out"), list(leftOut));
  return parts;
}

function table(failed) {
  const rows = failed.map(({ name, reason }) => element("tr", {}, element("td", {}, name), element("td", {}, reason)));
  const head = element("tr", {}, element("th", { scope: "col" }, "Picture"), element("th", { scope: "col" }, "Why it failed"));
  return element("table", { class: "failures" }, element("thead", {}, head), element("tbody", {}, ...rows));
}

function list(names) {
  return element("ul", {}, ...names.map((name) => element("li", {}, name)));
}
