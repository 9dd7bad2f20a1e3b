// Boxes as [x0, y0, x1, y1] in pixels of the upright image. Nothing here touches the page.

/** What of the box lies inside the image. */
export function cut(box, width, height) {
  return [Math.max(box[0], 0), Math.max(box[1], 0), Math.min(box[2], width), Math.min(box[3], height)];
}

/** The box moved, no further than the image reaches. */
export function moved(box, dx, dy, width, height) {
  const x = Math.min(Math.max(dx, -box[0]), width - box[2]);
  const y = Math.min(Math.max(dy, -box[1]), height - box[3]);
  return [box[0] + x, box[1] + y, box[2] + x, box[3] + y];
}

/** The box with its lower right corner moved. It stays `least` pixels wide and high. */
export function resized([x0, y0, x1, y1], dx, dy, width, height, least = 4) {
  return [x0, y0, Math.max(Math.min(x1 + dx, width), x0 + least), Math.max(Math.min(y1 + dy, height), y0 + least)];
}

/** Whole pixels. */
export function rounded(box) {
  return box.map(Math.round);
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

function contains(box, [x, y]) {
  return x >= box[0] && x <= box[2] && y >= box[1] && y <= box[3];
}
