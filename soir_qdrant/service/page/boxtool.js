// Draws, moves and resizes one box over an image, by mouse, pen, finger or keys; shows the detected objects.

import { rectangle, svg } from "./dom.js";
import { contains, fromDrag, moved, resized, rounded, smallestAround } from "./geometry.js";

const CORNERS = ["nw", "ne", "se", "sw"];
const SIDES = ["n", "e", "s", "w"];
const ROOMY = 8; // a side of the box gets a handle of its own where it is so many radii long
const CLICK = 5; // pixels of the screen that a click may move
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class BoxTool {
  /** drawn(box): a box was finished with the pointer. picked(number): an object was chosen.
   *  changed(box): the box is another now. entered(): Enter was pressed. */
  constructor(layer, { drawn, picked, changed, entered }) {
    Object.assign(this, { layer, drawn, picked, changed, entered });
    Object.assign(this, { width: 1, height: 1, box: null, objects: [], drag: null, object: -1 });
    layer.addEventListener("pointerdown", (event) => this.press(event));
    layer.addEventListener("pointermove", (event) => this.pull(event));
    layer.addEventListener("pointerup", (event) => this.release(event));
    layer.addEventListener("pointercancel", () => this.cancel());
    layer.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(layer);
  }

  /** A new image of this size, with the boxes of its objects where they are known. */
  open(width, height, objects = []) {
    Object.assign(this, { width, height, objects, box: null, drag: null, object: -1 });
    this.layer.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.layer.parentElement.style.setProperty("--shape", width / height);
    this.draw();
  }

  /** box: or null for none. object: its number, where it is one of the objects. */
  set(box, object = -1) {
    this.box = box && rounded(box);
    this.object = object;
    this.draw();
    this.changed(this.box);
  }

  showObjects(objects) {
    this.objects = objects;
    this.draw();
  }

  // -- drawing ---------------------------------------------------------------------------------------------

  draw() {
    const scale = this.width / (this.layer.clientWidth || this.width); // image pixels in one of the screen
    const parts = this.objects.map((box, number) =>
      rectangle(box, { class: number === this.object ? "object chosen" : "object", "data-object": number }),
    );
    if (this.box) {
      const [x0, y0, x1, y1] = this.box;
      const veil = `M0 0H${this.width}V${this.height}H0Z M${x0} ${y0}V${y1}H${x1}V${y0}Z`;
      parts.push(svg("path", { class: "veil", d: veil, "fill-rule": "evenodd" }));
      parts.push(rectangle(this.box, { class: "halo" }), rectangle(this.box, { class: "box" }));
      const radius = (matchMedia("(pointer: coarse)").matches ? 11 : 6) * scale;
      const roomy = Math.min(x1 - x0, y1 - y0) > ROOMY * radius;
      for (const sides of roomy ? [...SIDES, ...CORNERS] : CORNERS) {
        const [cx, cy] = this.corner(sides);
        parts.push(svg("circle", { class: `handle ${sides}`, cx, cy, r: radius, "data-sides": sides }));
      }
    }
    this.layer.replaceChildren(...parts);
  }

  corner(sides) {
    const [x0, y0, x1, y1] = this.box;
    const x = sides.includes("w") ? x0 : sides.includes("e") ? x1 : (x0 + x1) / 2;
    const y = sides.includes("n") ? y0 : sides.includes("s") ? y1 : (y0 + y1) / 2;
    return [x, y];
  }

  // -- pointer ---------------------------------------------------------------------------------------------

  point(event) {
    const frame = this.layer.getBoundingClientRect();
    return [
      ((event.clientX - frame.left) / frame.width) * this.width,
      ((event.clientY - frame.top) / frame.height) * this.height,
    ];
  }

  press(event) {
    if (event.button !== 0 || !event.isPrimary) return;
    event.preventDefault();
    this.layer.focus({ preventScroll: true });
    this.layer.setPointerCapture(event.pointerId);
    const start = this.point(event);
    const sides = event.target.dataset?.sides;
    const kind = sides ? "resize" : this.box && contains(this.box, start) ? "move" : "draw";
    this.drag = { kind, sides, start, before: this.box, at: [event.clientX, event.clientY], far: false };
  }

  pull(event) {
    if (!this.drag) return;
    const { kind, sides, start, before, at } = this.drag;
    this.drag.far ||= Math.hypot(event.clientX - at[0], event.clientY - at[1]) > CLICK;
    if (!this.drag.far) return;
    const here = this.point(event);
    const [dx, dy] = [here[0] - start[0], here[1] - start[1]];
    if (kind === "draw") this.box = fromDrag(start, here, this.width, this.height);
    if (kind === "move") this.box = moved(before, dx, dy, this.width, this.height);
    if (kind === "resize") this.box = resized(before, sides, dx, dy, this.width, this.height);
    this.object = -1;
    this.draw();
  }

  release() {
    if (!this.drag) return;
    const { far, start, before } = this.drag;
    this.drag = null;
    if (!far) {
      const number = smallestAround(this.objects, start);
      if (number >= 0) this.picked(number);
      return;
    }
    const [x0, y0, x1, y1] = this.box;
    if (x1 - x0 < 2 || y1 - y0 < 2) {
      this.set(before);
      return;
    }
    this.set(this.box);
    this.drawn(this.box);
  }

  cancel() {
    if (this.drag) this.box = this.drag.before;
    this.drag = null;
    this.draw();
  }

  // -- keys ------------------------------------------------------------------------------------------------

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

  nudge([dx, dy], event) {
    const { width, height } = this;
    if (!this.box) {
      this.set([width * 0.35, height * 0.35, width * 0.65, height * 0.65]);
      return;
    }
    const step = event.altKey ? 1 : Math.max(1, Math.round(Math.max(width, height) / 100));
    const [x, y] = [dx * step, dy * step];
    this.set(event.shiftKey ? resized(this.box, "se", x, y, width, height) : moved(this.box, x, y, width, height));
  }

  step(by) {
    const count = this.objects.length;
    const next = this.object < 0 ? (by > 0 ? 0 : count - 1) : (this.object + by + count) % count;
    this.set(this.objects[next], next);
  }
}
