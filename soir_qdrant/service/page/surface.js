// What a box is drawn, moved and resized on by mouse, pen and finger: Annotorious, with one box inside the image.

import { element, svg } from "./dom.js";
import { cut, moved } from "./geometry.js";

const SIDE = 10_000; // units of Annotorious along an image's longer side: a quick drag over 100 square ones draws
const CLICK = 5; // pixels of the screen that a click may move
const LEAST = 2; // pixels of the image that a box has each way

export class Surface {
  /** pulled(box): the box while the pointer is down, null while a new one is drawn; the one before once that is
   *  given up. drawn(box): a box is finished. clicked([x, y]): a point of the image. */
  constructor(layer, { pulled, drawn, clicked }) {
    Object.assign(this, { layer, pulled, drawn, clicked });
    Object.assign(this, { width: 1, height: 1, box: null, press: null, annotator: null, shown: 0 });
    this.under = svg("g"); // for shapes under the box
    for (const type of ["pointerdown", "pointermove", "pointerup"]) layer.addEventListener(type, onePointer, true);
    layer.addEventListener("pointerdown", (event) => this.down(event), true);
    layer.addEventListener("pointermove", (event) => this.move(event));
    for (const type of ["pointerup", "lostpointercapture"]) layer.addEventListener(type, () => this.up());
    layer.addEventListener("pointercancel", () => this.giveUp());
    document.body.addEventListener("keydown", keepUndo);
    new ResizeObserver(() => layer.clientWidth || this.restart()).observe(layer);
    this.ready = import("./vendor/annotorious.js").then(() => this.restart()); // the page does not wait for it
  }

  /** A new image of this size. */
  open(width, height) {
    Object.assign(this, { width, height, box: null });
    this.restart();
  }

  /** Show the box, or null for none. */
  show(box) {
    Object.assign(this, { box, press: null });
    this.put(box, String(++this.shown)); // a new id: what was being done to the box before is over
  }

  /** Annotorious anew; none while the layer is hidden, where all lengths are 0 to it. Without it, what lies under the
   *  box is shown and clicked all the same. */
  restart() {
    this.annotator?.destroy();
    this.annotator = null;
    if (!this.layer.clientWidth) return;
    this.units = SIDE / Math.max(this.width, this.height);
    this.under.setAttribute("transform", `scale(${this.units})`);
    this.sheet = globalThis.Annotorious ? this.annotated() : this.plain();
    this.sheet.setAttribute("viewBox", `0 0 ${this.width * this.units} ${this.height * this.units}`);
    this.sheet.prepend(this.under);
    this.show(this.box);
  }

  /** The drawing of a new annotator. */
  annotated() {
    const blank = element("canvas", { hidden: true }); // it is made for an image: here the layer lies over one
    this.layer.replaceChildren(blank);
    this.annotator = globalThis.Annotorious.createImageAnnotator(blank);
    const frame = this.annotator.element;
    frame.setAttribute("aria-hidden", "true"); // the layer has the name, the focus and the keys
    const unreached = () => frame.querySelectorAll("[tabindex]").forEach((one) => one.removeAttribute("tabindex"));
    new MutationObserver(unreached).observe(frame, { childList: true, subtree: true });
    return frame.querySelector("svg");
  }

  /** A drawing without one. */
  plain() {
    const sheet = svg("svg", { "aria-hidden": "true" });
    this.layer.replaceChildren(sheet);
    return sheet;
  }

  /** Give Annotorious the box. */
  put(box, id) {
    if (!this.annotator) return;
    const [minX, minY, maxX, maxY] = (box ?? []).map((value) => value * this.units);
    const geometry = { x: minX, y: minY, w: maxX - minX, h: maxY - minY, rot: 0, bounds: { minX, minY, maxX, maxY } };
    const annotation = { id, bodies: [], target: { annotation: id, selector: { type: "RECTANGLE", geometry } } };
    this.annotator.setAnnotations(box ? [annotation] : []);
    this.annotator.setSelected(box ? id : undefined);
  }

  /** The box of Annotorious, put inside the image; null while one is drawn. */
  pull() {
    const [annotation] = this.annotator?.getAnnotations() ?? [];
    if (!annotation) return null;
    const { x, y, w, h } = annotation.target.selector.geometry;
    const box = [x, y, x + w, y + h].map((value) => value / this.units);
    const { width, height } = this;
    const inside = this.press.moves ? moved(box, 0, 0, width, height) : cut(box, width, height);
    this.put(inside, annotation.id);
    return inside;
  }

  /** A press, before Annotorious learns of it. It draws only where there is no box: outside of one, that goes. */
  down({ target, pointerId, clientX, clientY }) {
    this.press = { at: [clientX, clientY], far: false, moves: target.matches(".a9s-shape-handle") };
    if (target.closest(".a9s-annotation.selected")) return;
    this.sheet.setPointerCapture(pointerId);
    this.annotator?.setAnnotations([]);
  }

  move({ clientX, clientY }) {
    if (!this.press) return;
    const [x, y] = this.press.at;
    this.press.far ||= Math.hypot(clientX - x, clientY - y) > CLICK;
    if (this.press.far) this.pulled(this.pull());
  }

  up() {
    if (!this.press) return;
    const { far, at } = this.press;
    const box = far ? this.pull() : null;
    if (box && Math.min(box[2] - box[0], box[3] - box[1]) >= LEAST) {
      this.press = null;
      this.drawn(box);
    } else {
      this.giveUp();
      if (!far) this.clicked(this.point(at));
    }
  }

  /** Back to the box before. */
  giveUp() {
    if (!this.press) return;
    this.annotator?.cancelDrawing();
    this.show(this.box);
    this.pulled(this.box);
  }

  point([x, y]) {
    const frame = this.layer.getBoundingClientRect();
    return [((x - frame.left) / frame.width) * this.width, ((y - frame.top) / frame.height) * this.height];
  }
}

/** Annotorious would follow a second finger and the other buttons too. */
function onePointer(event) {
  if (!event.isPrimary || event.button > 0) event.stopImmediatePropagation();
}

/** Annotorious undoes what was drawn wherever Ctrl+Z is pressed: in a text field too. */
function keepUndo(event) {
  if ((event.ctrlKey || event.metaKey) && "zy".includes(event.key)) event.stopPropagation();
}
