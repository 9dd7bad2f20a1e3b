// Boxes as [x0, y0, x1, y1] in pixels of the upright image. Nothing here touches the page.

/** The box of a drag from one point to another, inside the image. */
export function fromDrag(a, b, width, height) {
  const inside = (value, limit) => Math.min(Math.max(value, 0), limit);
  const [ax, ay] = [inside(a[0], width), inside(a[1], height)];
  const [bx, by] = [inside(b[0], width), inside(b[1], height)];
  return [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)];
}

/** The box moved, no further than the image reaches. */
export function moved(box, dx, dy, width, height) {
  const x = Math.min(Math.max(dx, -box[0]), width - box[2]);
  const y = Math.min(Math.max(dy, -box[1]), height - box[3]);
  return [box[0] + x, box[1] + y, box[2] + x, box[3] + y];
}

/** The box with some sides moved. sides: of "n", "e", "s", "w", such as "se". It stays `least` pixels wide. */
export function resized(box, sides, dx, dy, width, height, least = 4) {
  let [x0, y0, x1, y1] = box;
  if (sides.includes("w")) x0 = Math.min(Math.max(x0 + dx, 0), x1 - least);
  if (sides.includes("e")) x1 = Math.max(Math.min(x1 + dx, width), x0 + least);
  if (sides.includes("n")) y0 = Math.min(Math.max(y0 + dy, 0), y1 - least);
  if (sides.includes("s")) y1 = Math.max(Math.min(y1 + dy, height), y0 + least);
  return [x0, y0, x1, y1];
}

/** Whole pixels. */
export function rounded(box) {
  return box.map(Math.round);
}

/** Whether a point lies in the box. */
export function contains(box, [x, y]) {
  return x >= box[0] && x <= box[2] && y >= box[1] && y <= box[3];
}

/** The number of the smallest box around a point, or -1: of nested objects, the inner one is meant. */
export function smallestAround(boxes, point) {
  let best = -1;
  boxes.forEach((box, number) => {
    if (contains(box, point) && (best < 0 || area(box) < area(boxes[best]))) best = number;
  });
  return best;
}

/** Whether a point lies inside a polygon, [[x, y], ...]: it does where a ray from it meets an odd number of sides. */
export function inPolygon(polygon, [x, y]) {
  let inside = false;
  polygon.forEach(([ax, ay], i) => {
    const [bx, by] = polygon[(i + 1) % polygon.length];
    if (ay > y !== by > y && x < ax + ((bx - ax) * (y - ay)) / (by - ay)) inside = !inside;
  });
  return inside;
}

function area(box) {
  return (box[2] - box[0]) * (box[3] - box[1]);
}
