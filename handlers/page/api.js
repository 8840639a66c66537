/** The server by REST, and in words for people why it did not do something. */

import { sessionId, token } from "./access.js";
import { LockstepRest } from "./client/rest.js";

export const rest = new LockstepRest(".", { token, timeoutMs: 8000 });

const KINDLY = {
  CONFLICT: "Somebody else was quicker. This is how it stands now.",
  INVALID_STATE_TRANSITION: "That was already done. This is how it stands now.",
  SESSION_NOT_FOUND: "This clock is no longer kept.",
  RATE_LIMIT_EXCEEDED: "A little slower, please.",
  SESSION_BUSY: "Too many at once: nothing was changed. Please try again.",
  BROKER_UNAVAILABLE: "The server cannot do that at the moment. Please try again soon.",
  UNREACHABLE: "The server does not answer. Please try again in a moment.",
  INVALID_ANSWER: "What answers there is not this server. Please try again in a moment.",
  // Reasons: they say more than their code does.
  turn: "It is not your turn.",
  scope: "Your link does not let you do that.",
  missing: "This link lets you watch only.",
};

/** @param {Error} error what a client of the server throws, or the signal that it was given */
export function kindly({ name, code, details, message }) {
  if (name === "TimeoutError") return KINDLY.UNREACHABLE;
  if (code === "VALIDATION_ERROR" && details?.length) return details[0].message;
  return KINDLY[details?.reason] ?? KINDLY[code] ?? message;
}

/** The latest `count` events up to `state`, and what has come since; fewer where fewer are kept. */
export async function eventsUpTo({ epoch, version }, count, signal) {
  const events = [];
  const since = Math.max(0, version - count);
  for await (const event of rest.events(sessionId, { since, epoch, signal })) events.push(event);
  return events;
}

// crypto.randomUUID exists on https and localhost only, and a clock in a local network is on neither.
export const uuid = () =>
  "10000000-1000-4000-8000-100000000000".replace(/[018]/g, (digit) =>
    (digit ^ (crypto.getRandomValues(new Uint8Array(1))[0] & (15 >> (digit / 4)))).toString(16),
  );
