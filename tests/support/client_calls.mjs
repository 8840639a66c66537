// The pure functions of clients/js, called as Python asks: a line of JSON for each batch of calls, one for its results.

import { createInterface } from "node:readline";

import * as backoff from "../../clients/js/src/backoff.js";
import * as changes from "../../clients/js/src/changes.js";
import * as clocks from "../../clients/js/src/clocks.js";

const functions = { ...backoff, ...changes, ...clocks };

for await (const line of createInterface({ input: process.stdin })) {
  const results = JSON.parse(line).map(([name, args, constants]) => {
    const gives = Object.values(constants).map((value) => () => value);
    return functions[name](...args, ...gives) ?? null;
  });
  console.log(JSON.stringify(results));
}
