// One box over an image, by pointer (surface.js) or by keys, and the detected objects.

import { rectangle, svg } from "./dom.js";
import { moved, resized, rounded, smallestAround } from "./geometry.js";
import { Surface } from "./surface.js";

const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class BoxTool {
  /** drawn(box): a box was finished with the pointer. picked(number): an object was chosen.
   *  changed(box): the box is another now. entered(): Enter was pressed. */
  constructor(layer, { drawn, picked, changed, entered }) {
    Object.assign(this, { layer, picked, changed, entered });
    Object.assign(this, { width: 1, height: 1, box: null, objects: [], object: -1 });
    layer.addEventListener("keydown", (event) => this.key(event));
    this.surface = new Surface(layer, {
      pulled: (box) => this.paint(box),
      drawn: (box) => {
        this.set(box);
        drawn(this.box);
      },
      clicked: (point) => this.click(point),
    });
    this.ready = this.surface.ready; // to draw on
  }

  /** A new image of this size, with the boxes of its objects where they are known. */
  open(width, height, objects = []) {
    Object.assign(this, { width, height, objects, box: null, object: -1 });
    this.layer.parentElement.style.setProperty("--shape", width / height);
    this.surface.open(width, height);
    this.paint();
    this.changed(null);
  }

  /** box: or null for none. object: its number, where it is one of the objects. */
  set(box, object = -1) {
    this.box = box && rounded(box);
    this.object = object;
    this.surface.show(this.box);
    this.paint();
    this.changed(this.box);
  }

  showObjects(objects) {
    this.objects = objects;
    this.paint();
  }

  /** The objects, and a veil over all but the box. */
  paint(box = this.box) {
    const chosen = box === this.box ? this.object : -1;
    const parts = this.objects.map((one, number) =>
      rectangle(one, { class: number === chosen ? "object chosen" : "object", "data-object": number }),
    );
    if (box) {
      const hole = `M${box[0]} ${box[1]}V${box[3]}H${box[2]}V${box[1]}Z`;
      const d = `M0 0H${this.width}V${this.height}H0Z ${hole}`;
      parts.push(svg("path", { class: "veil", d, "fill-rule": "evenodd" }));
    }
    this.surface.under.replaceChildren(...parts);
  }

  click(point) {
    const number = smallestAround(this.objects, point);
    if (number >= 0) this.picked(number);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey) return;
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (name in KEYS) this.nudge(KEYS[name], event);
    else if (name === "Enter") this.entered();
    else if (name === "Escape" && this.box) this.set(null);
    else if (name === "n" && this.objects.length) this.step(1);
    else if (name === "p" && this.objects.length) this.step(-1);
    else return;
    event.preventDefault();
  }

  nudge([dx, dy], { altKey, shiftKey }) {
    const { box, width, height } = this;
    const step = altKey ? 1 : Math.max(1, Math.round(Math.max(width, height) / 100));
    const change = shiftKey ? resized : moved;
    const middle = [width * 0.35, height * 0.35, width * 0.65, height * 0.65];
    this.set(box ? change(box, dx * step, dy * step, width, height) : middle);
  }

  step(by) {
    const count = this.objects.length;
    const next = this.object < 0 ? (by > 0 ? 0 : count - 1) : (this.object + by + count) % count;
    this.set(this.objects[next], next);
  }
}
