// Adding pictures to the collection, one request and one job after the other, with their progress.

import { Problem, address, call } from "./api.js";
import { byId, element } from "./dom.js";

/** Let the field add to the collection of now. collection(): its name. done(): the collection has changed. */
export function letAdd(collection, maxBytes, done) {
  byId("add").hidden = false;
  byId("add-files").addEventListener("change", async (event) => {
    const files = [...event.target.files];
    event.target.disabled = true;
    const failed = [];
    let added = 0;
    for (const [index, file] of files.entries()) {
      tell(`${index} of ${files.length} …`, index / files.length);
      try {
        const job = await one(collection(), file, maxBytes);
        added += job.added + job.skipped;
        failed.push(...job.failed.map(({ name, reason }) => `${name}: ${reason}`));
        if (job.error) failed.push(`${file.name}: ${job.error}`);
      } catch (problem) {
        failed.push(`${file.name}: ${problem.message}`);
      }
    }
    tell(`${added} in the collection, ${failed.length} failed.`, 1);
    byId("add-failed").replaceChildren(...failed.map((text) => element("li", {}, text)));
    event.target.disabled = false;
    event.target.value = "";
    done();
  });
}

async function one(collection, file, maxBytes) {
  if (file.size > maxBytes) throw new Problem(`the service takes ${Math.floor(maxBytes / 1e6)} MB; make it smaller`, 0);
  const body = new FormData();
  body.set("images", file);
  const url = address(`collections/${encodeURIComponent(collection)}/images`);
  const job = await call(url, { method: "POST", body });
  return ended(job.id);
}

/** The job, once it is over. */
function ended(id) {
  return new Promise((resolve, reject) => {
    const events = new EventSource(address(`jobs/${encodeURIComponent(id)}/events`));
    events.addEventListener("end", (event) => {
      events.close();
      resolve(JSON.parse(event.data));
    });
    events.addEventListener("error", () => {
      events.close();
      reject(new Problem("the service does not answer: see its log", 0));
    });
  });
}

function tell(text, share) {
  byId("add-status").textContent = text;
  byId("add-progress").value = share;
}

/** Take an image out of the collection. */
export function remove(collection, id) {
  const url = address(`collections/${encodeURIComponent(collection)}/images`);
  const body = JSON.stringify({ ids: [id] });
  return call(url, { method: "DELETE", headers: { "Content-Type": "application/json" }, body });
}
