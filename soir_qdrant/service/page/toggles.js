// The switches over the grid: boxes, heat maps, masks.

import { imageAddress } from "./api.js";
import { byId } from "./dom.js";
import { Overlays } from "./results.js";

const SIDE = 480;

export class Toggles {
  /** changed(): a switch was pressed. */
  constructor(changed) {
    this.overlays = { heat: this.overlay("heat"), mask: this.overlay("mask") };
    for (const id of ["show-boxes", "show-heat", "show-masks"]) byId(id).addEventListener("change", changed);
  }

  overlay(kind) {
    return new Overlays(kind, (image) => {
      if (kind === "mask" && !hasObject(image)) return null;
      const search = kind === "heat" ? this.search : null;
      return imageAddress(this.collection, image.id, kind, { search, object: image.object, side: SIDE });
    });
  }

  /** Lay over the cards what is switched on; only switches that do something are there. cards: Map of card -> image. */
  show(collection, { images, search }, cards) {
    Object.assign(this, { collection, search });
    byId("toggles").hidden = !images.length;
    byId("show-heat").parentElement.hidden = !search;
    byId("show-masks").parentElement.hidden = !images.some(hasObject);
    this.overlays.heat.show(search && byId("show-heat").checked ? cards : new Map());
    this.overlays.mask.show(byId("show-masks").checked ? cards : new Map());
    byId("grid").classList.toggle("no-boxes", !byId("show-boxes").checked);
  }
}

function hasObject({ object }) {
  return (object ?? null) !== null;
}
