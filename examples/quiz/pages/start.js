/** Opens a quiz, and sends its host to the host's page. */

import { $, ask, attempt } from "./api.js";

$("create").onsubmit = (event) => {
  event.preventDefault();
  attempt(async () => {
    const { title, seconds } = Object.fromEntries(new FormData($("create")));
    const { quiz, token } = await ask("POST", "", { title, seconds: Number(seconds) });
    // What follows the # is never part of a requested URL.
    location.href = `host.html?quiz=${quiz}#token=${token}`;
  });
};
