// Elements, always with text and never with HTML out of names or payloads.

const SVG = "http://www.w3.org/2000/svg";

/** An element. properties: attributes; `on` has listeners; true and false set and leave out an attribute. */
export function element(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

/** The same in SVG. */
export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), properties, children);
}

function filled(made, { on = {}, ...attributes }, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    made.setAttribute(name, value === true ? "" : String(value));
  }
  for (const [name, listener] of Object.entries(on)) made.addEventListener(name, listener);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** The element with this id. */
export function byId(id) {
  return document.getElementById(id);
}

/** A rectangle of an image. box: x0, y0, x1, y1 in pixels. */
export function rectangle([x0, y0, x1, y1], properties = {}) {
  const size = { x: x0, y: y0, width: Math.max(0, x1 - x0), height: Math.max(0, y1 - y0) };
  return svg("rect", { ...size, "vector-effect": "non-scaling-stroke", ...properties });
}
