// The examples of what is meant, and of what is not.

import { imageAddress } from "./api.js";
import { byId, element } from "./dom.js";

/** Show them. changed(): one was taken off. */
export function drawChips(state, changed) {
  byId("chips").replaceChildren(
    ...state.examples.map((place) => chip(state, state.examples, place, "more", changed)),
    ...state.negatives.map((place) => chip(state, state.negatives, place, "not", changed)),
  );
  byId("refined").hidden = !(state.examples.length || state.negatives.length);
}

function chip(state, list, place, kind, changed) {
  const image = element("img", { src: source(state.collection, place), alt: "" });
  const off = () => {
    list.splice(list.indexOf(place), 1);
    changed();
  };
  const label = `Take this one off: ${kind === "more" ? "more like it" : "not like it"}`;
  const button = element("button", { type: "button", "aria-label": label, on: { click: off } }, "×");
  return element("li", { class: kind }, image, kind, button);
}

function source(collection, { id, object, box }) {
  if (object !== null) return imageAddress(collection, id, "crop", { object, side: 96 });
  if (box) return imageAddress(collection, id, "crop", { box: box.join(","), side: 96 });
  return imageAddress(collection, id, "thumbnail", { side: 96 });
}
