/**
 * For tests of applications: a server whose time passes only when it is told to.
 *
 * @module lockstep-client/testing
 */

import { LockstepError } from "./errors.js";
import { Http, invalid } from "./http.js";

/** @import { Lockstep } from "./lockstep.js" */
/** @import { Token } from "./types.js" */

const ADVANCED_WITHIN_MS = 120_000;
const TOLD_WITHIN_MS = 10_000;
const LOOK_EVERY_MS = 2;

/**
 * Let time pass at a server that was started with `--virtual-time=yes`.
 *
 * When this resolves, everything that falls due on the way has happened, and `clients` know it: their subscriptions
 * have told of each change, and their `time` is the server's. What they were about to subscribe to is waited for first.
 *
 * @param {string | URL} url the server's address
 * @param {number} ms from 1 to 86,400,000
 * @param {{ token?: Token | undefined, clients?: Lockstep[] | undefined }} [options] a token of scope `admin` for all
 *   sessions, if the server wants one; clients that are connected to it
 * @returns {Promise<number>} the server's time then, in epoch ms
 */
export async function advance(url, ms, { token, clients = [] } = {}) {
  await Promise.all(clients.map(following));
  const http = new Http(url, { token, timeoutMs: ADVANCED_WITHIN_MS });
  const answer = await http.send("POST", "time/advance", { body: { ms }, isOnce: true });
  const timestampMs = answer?.timestamp_ms;
  if (typeof timestampMs !== "number") throw invalid("it has no time");
  await Promise.all(clients.map(({ time }) => until(() => time.now() >= timestampMs)));
  return timestampMs;
}

/** @param {Lockstep} client */
const following = (client) =>
  until(() => client.time.errorMs === 0 && client.subscriptions.every(({ status }) => status !== "waiting"));

/** @param {() => boolean} holds */
async function until(holds) {
  const giveUpAtMs = performance.now() + TOLD_WITHIN_MS;
  while (!holds()) {
    if (performance.now() > giveUpAtMs) throw new LockstepError("UNREACHABLE", "A client is not told of the time");
    await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
  }
}
