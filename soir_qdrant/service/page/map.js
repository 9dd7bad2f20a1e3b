// Objects as points: those that look alike lie together. A line drawn round some searches for them.

import { imageAddress } from "./api.js";
import { element, svg } from "./dom.js";
import { inPolygon } from "./geometry.js";

const WIDTH = 1000;
const HEIGHT = 640;
const MARGIN = 30;
const THUMB = 46;
const MAX_THUMBS = 150;
const CLICK = 6; // pixels that a click may move
const MAX_ZOOM = 16;
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class ObjectMap {
  /** picked(point): an object was chosen. lassoed(points): a line was drawn round some, the most central first. */
  constructor({ picked, lassoed }) {
    Object.assign(this, { picked, lassoed, points: [], line: null, at: -1, zoom: 1, centre: [WIDTH / 2, HEIGHT / 2] });
    this.layer = svg("svg", {
      class: "map", tabindex: 0, role: "application",
      "aria-label": "Objects of the collection, those that look alike together. Arrows go from one to the next, Enter searches for it, plus and minus zoom.",
      on: {
        pointerdown: (event) => this.press(event),
        pointermove: (event) => this.pull(event),
        pointerup: (event) => this.release(event),
        pointercancel: () => this.drop(),
        pointerleave: () => this.line || this.mark(-1),
        keydown: (event) => this.key(event),
        wheel: (event) => this.wheel(event),
      },
    });
    this.preview = element("div", { class: "preview", hidden: true });
    this.frame = element("div", { class: "map-frame" }, this.layer, this.preview);
  }

  /** points: [{id, object, x, y}], x and y 0..1. */
  show(collection, points) {
    this.collection = collection;
    this.points = points.map((point) => ({
      ...point, px: MARGIN + point.x * (WIDTH - 2 * MARGIN), py: MARGIN + point.y * (HEIGHT - 2 * MARGIN),
    }));
    Object.assign(this, { zoom: 1, centre: [WIDTH / 2, HEIGHT / 2], line: null, at: -1 });
    this.preview.hidden = true;
    this.draw();
  }

  // -- drawing ---------------------------------------------------------------------------------------------

  draw() {
    const [width, height] = [WIDTH / this.zoom, HEIGHT / this.zoom];
    const inside = (value, size, whole) => Math.min(Math.max(value, size / 2), whole - size / 2);
    this.centre = [inside(this.centre[0], width, WIDTH), inside(this.centre[1], height, HEIGHT)];
    const [x, y] = [this.centre[0] - width / 2, this.centre[1] - height / 2];
    this.layer.setAttribute("viewBox", `${x} ${y} ${width} ${height}`);
    const parts = this.points.map((point, number) =>
      svg("circle", { class: "point", cx: point.px, cy: point.py, r: 4 / this.zoom, "data-point": number }));
    this.layer.replaceChildren(...parts, ...this.thumbnails([x, y, x + width, y + height]));
    this.outline = svg("polygon", { class: "lasso", "vector-effect": "non-scaling-stroke" });
    this.layer.append(this.outline);
  }

  /** Pictures of some objects in sight, none over another. */
  thumbnails([x0, y0, x1, y1]) {
    const side = THUMB / this.zoom;
    const shown = [];
    for (const point of this.points) {
      if (shown.length >= MAX_THUMBS) break;
      if (point.px < x0 || point.px > x1 || point.py < y0 || point.py > y1) continue;
      if (shown.every((other) => Math.max(Math.abs(other.px - point.px), Math.abs(other.py - point.py)) > side)) shown.push(point);
    }
    return shown.map((point) => svg("image", {
      class: "thumb", href: this.source(point, 96), x: point.px - side / 2, y: point.py - side / 2, width: side, height: side,
    }));
  }

  source({ id, object }, side) {
    return imageAddress(this.collection, id, "crop", { object, side });
  }

  /** Show which object is meant. number: or -1 for none. */
  mark(number) {
    this.at = number;
    for (const circle of this.layer.querySelectorAll(".point.chosen")) circle.classList.remove("chosen");
    const circle = this.layer.querySelector(`[data-point="${number}"]`);
    circle?.classList.add("chosen");
    this.preview.hidden = number < 0;
    if (number < 0) return;
    const point = this.points[number];
    this.preview.replaceChildren(element("img", { src: this.source(point, 160), alt: `object ${point.object}` }));
    const [frame, place] = [this.frame.getBoundingClientRect(), circle.getBoundingClientRect()];
    this.preview.style.left = `${Math.min(place.left - frame.left + 14, frame.width - 176)}px`;
    this.preview.style.top = `${Math.min(place.top - frame.top + 14, frame.height - 176)}px`;
  }

  /** by: how many times larger. around: the point that stays where it is. */
  enlarge(by, around = this.centre) {
    const zoom = Math.min(Math.max(this.zoom * by, 1), MAX_ZOOM);
    const share = this.zoom / zoom;
    this.centre = this.centre.map((value, i) => around[i] + (value - around[i]) * share);
    this.zoom = zoom;
    this.draw();
  }

  // -- pointer and keys ------------------------------------------------------------------------------------

  place(event) {
    const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.layer.getScreenCTM().inverse());
    return [x, y];
  }

  /** The number of the object near a place, or -1. */
  nearest([x, y], reach = 24 / this.zoom) {
    let best = -1;
    let nearest = reach;
    this.points.forEach(({ px, py }, number) => {
      const distance = Math.hypot(px - x, py - y);
      if (distance < nearest) [best, nearest] = [number, distance];
    });
    return best;
  }

  press(event) {
    if (event.button !== 0) return;
    this.layer.setPointerCapture(event.pointerId);
    this.line = [this.place(event)];
    this.from = [event.clientX, event.clientY];
    this.far = false;
  }

  pull(event) {
    if (!this.line) {
      if (event.pointerType === "mouse") this.mark(this.nearest(this.place(event)));
      return;
    }
    this.far ||= Math.hypot(event.clientX - this.from[0], event.clientY - this.from[1]) > CLICK;
    if (!this.far) return;
    this.line.push(this.place(event));
    this.preview.hidden = true;
    this.outline.setAttribute("points", this.line.map((place) => place.join(",")).join(" "));
  }

  release(event) {
    const { line, far } = this;
    this.drop();
    if (!line) return;
    if (!far) {
      const number = this.nearest(this.place(event));
      if (number >= 0) this.picked(this.points[number]);
      return;
    }
    const inside = this.points.filter(({ px, py }) => inPolygon(line, [px, py]));
    if (inside.length) this.lassoed(byDistance(inside));
  }

  drop() {
    this.line = null;
    this.outline?.setAttribute("points", "");
  }

  wheel(event) {
    event.preventDefault();
    this.enlarge(event.deltaY < 0 ? 1.25 : 0.8, this.place(event));
  }

  key(event) {
    if (event.key in KEYS) this.step(KEYS[event.key]);
    else if (event.key === "Enter" && this.at >= 0) this.picked(this.points[this.at]);
    else if (event.key === "+" || event.key === "=") this.enlarge(1.5);
    else if (event.key === "-") this.enlarge(1 / 1.5);
    else return;
    event.preventDefault();
  }

  /** Go to the next object in a direction. */
  step([dx, dy]) {
    if (!this.points.length) return;
    if (this.at < 0) return this.mark(this.nearest(this.centre, Infinity));
    const { px, py } = this.points[this.at];
    const costs = this.points.map((other) => {
      const ahead = (other.px - px) * dx + (other.py - py) * dy;
      const aside = Math.abs((other.px - px) * dy) + Math.abs((other.py - py) * dx);
      return ahead > 0 ? ahead + 2 * aside : Infinity;
    });
    const best = costs.indexOf(Math.min(...costs));
    if (Number.isFinite(costs[best])) this.mark(best);
  }
}

/** The points, those nearest to their middle first. */
function byDistance(points) {
  const middle = (key) => points.reduce((sum, point) => sum + point[key], 0) / points.length;
  const [x, y] = [middle("px"), middle("py")];
  return points.toSorted((a, b) => Math.hypot(a.px - x, a.py - y) - Math.hypot(b.px - x, b.py - y));
}
