// The query's picture: from a file, the clipboard, a drop, or the collection.

import { Problem, call, imageAddress } from "./api.js";
import { byId } from "./dom.js";

const SHOWN = 1600; // pixels of the longer side on the canvas
let drawn = null; // the file that is on the canvas

/** A picture of the user's, to be shown by `showFile`. Returns {file, upload, key, width, height}. */
export async function openFile(file, maxBytes) {
  if (file.size > maxBytes) {
    throw new Problem(`This picture has ${mb(file.size)} MB; the service takes ${mb(maxBytes)} MB. Make it smaller.`, 0);
  }
  return { file, upload: null, key: Date.now(), ...(await draw(file)) };
}

/** Show a picture that was opened before. */
export async function showFile({ file }) {
  if (file !== drawn) await draw(file);
  show(true);
}

/** Put a file on the canvas. Returns its size. */
async function draw(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new Problem("This is no picture that the browser can show: take JPEG, PNG, WebP, AVIF or GIF.", 0);
  }
  const { width, height } = bitmap;
  const scale = Math.min(1, SHOWN / Math.max(width, height));
  const canvas = byId("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  drawn = file;
  return { width, height };
}

function mb(bytes) {
  return Math.ceil(bytes / 1e6);
}

/** A picture of the collection. Returns what the service knows of it. */
export async function openStored(collection, id) {
  const image = await call(imageAddress(collection, id, ""));
  const shown = byId("stored");
  shown.src = imageAddress(collection, id, "thumbnail", { side: SHOWN });
  shown.alt = image.name;
  shown.width = image.width;
  shown.height = image.height;
  show(false);
  return image;
}

function show(canvas) {
  byId("canvas").hidden = !canvas;
  byId("stored").hidden = canvas;
}

/** The first picture in what was dropped or pasted, or null. */
export function pictureIn(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/")) ?? null;
}

/** chosen(file): by the button, by a drop anywhere, or by pasting. refused(sentence): nothing fitting in it. */
export function listen(chosen, refused) {
  const field = byId("file");
  field.addEventListener("change", () => {
    if (field.files.length) chosen(field.files[0]);
    field.value = "";
  });
  document.addEventListener("paste", (event) => {
    const file = pictureIn(event.clipboardData);
    if (file) chosen(file);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    byId("drop").classList.add("over");
  });
  document.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    byId("drop").classList.remove("over");
    const file = pictureIn(event.dataTransfer);
    if (file) chosen(file);
    else refused("What was dropped holds no picture: drop a picture's file.");
  });
}
