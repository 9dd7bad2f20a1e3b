// The images that were found: cards with their boxes, heat maps and masks laid over them once they are there.

import { imageAddress, reason } from "./api.js";
import { byId, element, rectangle, svg } from "./dom.js";

const SIDE = 480;

/** One image's picture with its boxes. actions.pick(image, number): an object was clicked. */
export function picture(collection, image, actions, { side = SIDE, focusable = false } = {}) {
  const { width, height } = image;
  const shown = element("img", {
    src: imageAddress(collection, image.id, "thumbnail", { side }),
    alt: `${image.name}${image.labels.length ? `: ${image.labels.join(", ")}` : ""}`,
    loading: "lazy",
    decoding: "async",
    width,
    height,
    on: { error: () => lost(frame, shown.src) },
  });
  const layer = svg("svg", { class: "layer", viewBox: `0 0 ${width || 1} ${height || 1}`, preserveAspectRatio: "none" });
  layer.append(...boxes(image, actions, focusable));
  const frame = element("div", { class: "picture" }, shown, layer);
  return frame;
}

/** Say in its place why a picture cannot be shown. */
async function lost(frame, source) {
  const message = element("p", { class: "lost" }, "This picture cannot be shown.");
  frame.replaceChildren(message);
  message.append(` ${await reason(source)}`);
}

function boxes(image, actions, focusable) {
  const order = image.objects.map((object, number) => ({ ...object, number }));
  order.sort((a, b) => size(b.box) - size(a.box)); // inner objects lie on top, and can be clicked
  const parts = order.filter(({ number }) => number !== image.object).map((object) => part(image, object, "object", actions, focusable));
  if (image.box) {
    const matched = { box: image.box, number: image.object, label: image.objects[image.object]?.label };
    parts.push(rectangle(image.box, { class: "halo" }), part(image, matched, "matched", actions, focusable));
  }
  return parts;
}

function part(image, { box, number, label }, kind, actions, focusable) {
  const named = `object ${number}${label ? `, ${label}` : ""}${kind === "matched" ? ", the one that matched" : ""}`;
  const choose = (event) => {
    event.preventDefault();
    event.stopPropagation();
    actions.pick(image, number);
  };
  const key = (event) => ["Enter", " "].includes(event.key) && choose(event);
  const access = focusable ? { tabindex: 0, role: "button", "aria-label": `Search for ${named}` } : { "aria-hidden": true };
  const made = rectangle(box, { class: kind, "data-object": number, ...access, on: { click: choose, keydown: key } });
  made.append(svg("title", {}, `Search for ${named}`));
  return made;
}

function size([x0, y0, x1, y1]) {
  return (x1 - x0) * (y1 - y0);
}

/** All of them, in groups where there are some. Returns a Map of card -> image. */
export function drawGrid(collection, { images, groups }, actions) {
  const cards = new Map();
  const grid = (some) => element("div", { class: "cards" }, ...some.map((image) => {
    const made = card(collection, image, actions);
    cards.set(made, image);
    return made;
  }));
  const parts = groups?.map(({ key, hits }) => element("section", { class: "group" }, element("h3", {}, String(key)), grid(hits)));
  byId("grid").replaceChildren(...(parts ?? [grid(images)]));
  return cards;
}

/** A found image. actions: pick, zoom(image), more(image), less(image). */
function card(collection, hit, actions) {
  const zoom = element("button", {
    type: "button", class: "zoom", tabindex: -1, "aria-hidden": "true", on: { click: () => actions.zoom(hit) },
  });
  const shown = picture(collection, hit, actions);
  shown.prepend(zoom);
  const score = hit.score === undefined ? null : element("span", { class: "score", title: "similarity" }, hit.score.toFixed(3));
  const rank = hit.rank === undefined ? null : element("strong", {}, `${hit.rank}`);
  const about = element("p", { class: "caption" }, rank, score, element("span", { class: "name", title: hit.name }, hit.name));
  const place = hit.object ?? null;
  const buttons = element("div", { class: "actions" },
    button("Search from here", "search for this object", () => actions.pick(hit, place)),
    button("Enlarge", `enlarge ${hit.name}`, () => actions.zoom(hit)), // an object may cover it all
    button("More like this", "add it to the examples", () => actions.more(hit, place)),
    button("Not this", "add it to what is not meant", () => actions.less(hit, place)),
  );
  return element("article", { class: "card", "data-id": hit.id, "aria-label": hit.name }, shown, about, buttons);
}

function button(text, title, click) {
  return element("button", { type: "button", class: "quiet", title, on: { click } }, text);
}

/** Heat maps or masks of the cards that are in sight, one request after the other. */
export class Overlays {
  /** kind: "heat" or "mask"; source(image): the address of its overlay, or null. */
  constructor(kind, source) {
    Object.assign(this, { kind, source, waiting: [], running: false, images: new Map() });
    this.watch = new IntersectionObserver((entries) => this.seen(entries), { rootMargin: "100px" });
  }

  /** cards: Map of card -> image; none switches them off. */
  show(cards) {
    this.watch.disconnect();
    this.waiting = [];
    this.images = cards;
    for (const made of document.querySelectorAll(`#grid img.${this.kind}`)) made.remove();
    for (const made of cards.keys()) this.watch.observe(made);
  }

  seen(entries) {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      this.watch.unobserve(target);
      this.waiting.push(target);
    }
    this.next();
  }

  async next() {
    if (this.running) return;
    this.running = true;
    while (this.waiting.length) {
      const made = this.waiting.shift();
      const source = this.images.has(made) && this.source(this.images.get(made));
      if (source) await lay(made.querySelector(".picture"), this.kind, source);
    }
    this.running = false;
  }
}

/** Lay a transparent picture over another. Resolves when it is there, or cannot be had. */
export function lay(frame, kind, source) {
  return new Promise((done) => {
    frame.classList.add("busy");
    const made = element("img", { class: `overlay ${kind}`, alt: "", src: source });
    const end = () => {
      frame.classList.remove("busy");
      done();
    };
    made.addEventListener("load", end);
    made.addEventListener("error", () => {
      made.remove();
      end();
    });
    frame.querySelector(".layer")?.before(made);
  });
}
