// What clients/js calculates, called as Python asks: a line of JSON for each batch of calls, one for its results.

import { createInterface } from "node:readline";

import * as backoff from "../../clients/js/src/backoff.js";
import * as changes from "../../clients/js/src/changes.js";
import * as clocks from "../../clients/js/src/clocks.js";
import { ServerTime } from "../../clients/js/src/server-time.js";

/** What a ServerTime shows, whenever somebody looks: [now, error], the error null while there is no bound. */
function shownTimes(resolutionMs, events) {
  const [, startLocalMs, startWallMs] = events[0];
  let localMs = startLocalMs;
  let wallMs = startWallMs;
  const time = new ServerTime(() => localMs, () => wallMs, resolutionMs);
  const shown = [];
  for (const [name, eventLocalMs, eventWallMs, answer] of events) {
    localMs = eventLocalMs;
    wallMs = eventWallMs;
    if (name === "forget") time.forget();
    else if (name === "stand") time.stand(answer);
    else if (name === "look") shown.push([time.now(), Number.isFinite(time.errorMs) ? time.errorMs : null]);
    else time.learn(...answer.slice(0, 3), answer[3] ?? undefined, answer[4] ?? Infinity);
  }
  return shown;
}

const functions = { ...backoff, ...changes, ...clocks, shownTimes };

for await (const line of createInterface({ input: process.stdin })) {
  const results = JSON.parse(line).map(([name, args, constants]) => {
    const gives = constants.map((value) => () => value);
    return functions[name](...args, ...gives) ?? null;
  });
  console.log(JSON.stringify(results));
}
