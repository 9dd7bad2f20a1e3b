// One picture, large: its objects to click or to walk through with Tab, its heat map and mask, zoom.

import { imageAddress } from "./api.js";
import { byId } from "./dom.js";
import { lay, picture } from "./results.js";

const SIDE = 2048;
const ZOOMS = [1, 1.5, 2, 3, 4];

export class Viewer {
  /** pick(image, number): an object was chosen. take(image): it is to be deleted. */
  constructor(pick, take) {
    Object.assign(this, { pick, take, images: [], at: 0, zoom: 0, collection: "", search: null });
    Object.assign(this, { dialog: byId("viewer"), pane: byId("viewer-scroll") });
    byId("viewer-close").addEventListener("click", () => this.dialog.close());
    byId("viewer-remove").addEventListener("click", () => this.remove());
    byId("viewer-previous").addEventListener("click", () => this.go(-1));
    byId("viewer-next").addEventListener("click", () => this.go(1));
    byId("viewer-in").addEventListener("click", () => this.enlarge(1));
    byId("viewer-out").addEventListener("click", () => this.enlarge(-1));
    byId("viewer-heat").addEventListener("click", () => this.toggle("heat"));
    byId("viewer-mask").addEventListener("click", () => this.toggle("mask"));
    this.dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.go(-1);
      if (event.key === "ArrowRight") this.go(1);
    });
  }

  /** images: of the whole page of results. search: names it for heat maps, or null. */
  open(collection, images, image, search) {
    Object.assign(this, { collection, images, search, at: images.indexOf(image), zoom: 0 });
    this.draw();
    if (!this.dialog.open) this.dialog.showModal();
  }

  async remove() {
    const image = this.images[this.at];
    if (!confirm(`Take ${image.name} out of the collection? Its file stays.`)) return;
    await this.take(image);
    this.dialog.close();
  }

  go(by) {
    const next = this.at + by;
    if (next < 0 || next >= this.images.length) return;
    this.at = next;
    this.draw();
  }

  draw() {
    const image = this.images[this.at];
    byId("viewer-name").textContent = image.name;
    byId("viewer-about").textContent = describe(image);
    byId("viewer-previous").disabled = this.at === 0;
    byId("viewer-next").disabled = this.at === this.images.length - 1;
    byId("viewer-heat").hidden = !this.search;
    byId("viewer-mask").hidden = (image.object ?? null) === null;
    for (const kind of ["heat", "mask"]) byId(`viewer-${kind}`).setAttribute("aria-pressed", "false");
    const choose = (chosen, number) => {
      this.dialog.close();
      this.pick(chosen, number);
    };
    this.frame = picture(this.collection, image, { pick: choose }, { side: SIDE, focusable: true });
    this.pane.replaceChildren(this.frame);
    this.middle = middle(image);
    this.look();
  }

  enlarge(by) {
    if (this.pane.scrollLeft !== this.left || this.pane.scrollTop !== this.top) this.middle = this.inSight();
    this.zoom = Math.min(Math.max(this.zoom + by, 0), ZOOMS.length - 1);
    this.look();
  }

  /** Show the picture as large as it is to be, around its middle: the matched object, until it is scrolled. */
  look() {
    const { width, height } = this.images[this.at];
    const shape = width && height ? width / height : 1;
    this.frame.style.width = `min(${100 * ZOOMS[this.zoom]}%, ${(72 * shape * ZOOMS[this.zoom]).toFixed(2)}vh)`;
    const { pane, frame } = this;
    const [x, y] = this.middle;
    pane.scrollTo(x * frame.offsetWidth - pane.clientWidth / 2, y * frame.offsetHeight - pane.clientHeight / 2);
    Object.assign(this, { left: pane.scrollLeft, top: pane.scrollTop });
  }

  /** The middle of what is in sight, as shares of the picture. */
  inSight() {
    const [pane, frame] = [this.pane.getBoundingClientRect(), this.frame.getBoundingClientRect()];
    return [
      (pane.left + pane.width / 2 - frame.left) / frame.width,
      (pane.top + pane.height / 2 - frame.top) / frame.height,
    ];
  }

  async toggle(kind) {
    const image = this.images[this.at];
    const pressed = byId(`viewer-${kind}`).getAttribute("aria-pressed") === "true";
    byId(`viewer-${kind}`).setAttribute("aria-pressed", String(!pressed));
    if (pressed) {
      this.frame.querySelector(`img.${kind}`)?.remove();
      return;
    }
    const options = kind === "heat" ? { search: this.search, object: image.object } : { object: image.object };
    const source = imageAddress(this.collection, image.id, kind, { ...options, side: 1024 });
    const { frame } = this;
    await lay(frame, kind, source);
    if (frame === this.frame && !frame.querySelector(`img.${kind}`)) {
      byId(`viewer-${kind}`).setAttribute("aria-pressed", "false");
      byId("viewer-about").textContent = "That cannot be shown now: search again, or see the service's log.";
    }
  }
}

function middle({ box, width, height }) {
  return box && width && height ? [(box[0] + box[2]) / 2 / width, (box[1] + box[3]) / 2 / height] : [0.5, 0.5];
}

function describe(image) {
  const parts = [`${image.width} × ${image.height} pixels`, `${image.objects.length} objects`];
  if (image.score !== undefined) parts.unshift(`rank ${image.rank}, score ${image.score.toFixed(3)}`);
  for (const [key, value] of Object.entries(image.payload)) {
    parts.push(`${key}: ${typeof value === "string" ? value : JSON.stringify(value)}`);
  }
  return parts.join(" · ");
}
