// The form for the service's token; afterwards a cookie lets the page in.

import { address, json, sentence } from "./api.js";
import { byId } from "./dom.js";
import { worded } from "./status.js";

let open = null;

/** Ask for the token until the service takes it. Resolves true then, false where the form was closed. */
export function askForToken() {
  open ??= new Promise((done) => {
    const dialog = byId("login");
    const submit = async (event) => {
      event.preventDefault();
      byId("login-error").textContent = "";
      const answer = await fetch(address("session"), json({ token: byId("token").value })).catch(() => null);
      if (answer?.ok) dialog.close("in");
      else byId("login-error").replaceChildren(...worded(await why(answer)));
    };
    const end = () => {
      byId("login-form").removeEventListener("submit", submit);
      byId("token").value = "";
      open = null;
      done(dialog.returnValue === "in");
    };
    dialog.returnValue = "";
    byId("login-form").addEventListener("submit", submit);
    dialog.addEventListener("close", end, { once: true });
    dialog.showModal();
  });
  return open;
}

function why(answer) {
  return answer === null ? "The service does not answer. See that `soir serve` still runs." : sentence(answer);
}
