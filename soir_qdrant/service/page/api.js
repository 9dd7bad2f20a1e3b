// Talking to the service. Every failure becomes a Problem with a sentence that says what to do.

const base = new URL("v1/", document.baseURI);
const GONE = "The service does not answer. See that `soir serve` still runs, then try again.";
let logIn = async () => false;

/** What went wrong, to be shown. status: of HTTP; 0 where there was no answer. */
export class Problem extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** ask: shows a form for the token; resolves once the service has taken it. */
export function onLoginNeeded(ask) {
  logIn = ask;
}

/** The address of something below v1/. */
export function address(path, parameters = {}) {
  const url = new URL(path, base);
  for (const [key, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined) url.searchParams.set(key, value);
  }
  return url;
}

/** That of an image of a collection; what: "thumbnail", "crop", "heat", "mask". */
export function imageAddress(collection, id, what, parameters = {}) {
  const part = what ? `/${what}` : "";
  const path = `collections/${encodeURIComponent(collection)}/images/${encodeURIComponent(id)}${part}`;
  return address(path, parameters).href;
}

/** The JSON of an answer. waiting: called with the seconds until the next try, where the service is busy. */
export async function call(url, options = {}, waiting = () => {}) {
  for (let attempt = 1; ; attempt += 1) {
    const answer = await reached(url, options);
    if (answer.ok) return answer.status === 204 ? null : answer.json();
    if (answer.status === 401 && (await logIn())) continue;
    const after = Number(answer.headers.get("retry-after"));
    if ([429, 503].includes(answer.status) && after && after <= 20 && attempt < 5) {
      waiting(after);
      await new Promise((done) => setTimeout(done, 1000 * after));
      continue;
    }
    throw new Problem(await sentence(answer), answer.status);
  }
}

async function reached(url, options) {
  try {
    return await fetch(url, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(GONE, 0);
  }
}

/** Why there is no picture at an address. */
export async function reason(url) {
  try {
    const answer = await reached(url, {});
    return answer.ok ? "" : await sentence(answer);
  } catch (problem) {
    return problem.message;
  }
}

/** What a refusal says. */
export async function sentence(answer) {
  try {
    const { detail } = await answer.json();
    if (detail) return detail[0].toUpperCase() + detail.slice(1);
  } catch {
    // a proxy's page
  }
  return `The service answered ${answer.status} ${answer.statusText}: its log says why.`;
}

/** Options of a POST of JSON. */
export function json(body, signal) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
}
