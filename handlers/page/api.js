/** Requests to the REST API, and what the page's address says: the session and the token. */

export const sessionId = new URLSearchParams(location.search).get("session");
// If the server wants tokens, a link ends in #token=...: what follows the # is never part of a requested URL.
export const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? undefined;

const KINDLY = {
  CONFLICT: "Somebody else was quicker. This is how it stands now.",
  INVALID_STATE_TRANSITION: "That was already done. This is how it stands now.",
  SESSION_NOT_FOUND: "This clock is no longer kept.",
  RATE_LIMIT_EXCEEDED: "A little slower, please.",
  SESSION_BUSY: "Too many at once: nothing was changed. Please try again.",
  BROKER_UNAVAILABLE: "The server cannot do that at the moment. Please try again soon.",
  // Reasons: they say more than their code does.
  turn: "It is not your turn.",
  scope: "Your link does not let you do that.",
  missing: "This link lets you watch only.",
};

/** Return the answer's data, or throw an Error whose message can be shown. */
export async function api(method, path, body) {
  let response;
  try {
    const headers = { ...(body && { "Content-Type": "application/json" }), ...(token && { Authorization: `Bearer ${token}` }) };
    response = await fetch(path, { method, headers, body: JSON.stringify(body), signal: AbortSignal.timeout(8000) });
  } catch {
    throw new Error("The server does not answer. Please try again in a moment.");
  }
  const { data, error } = await response.json().catch(() => ({}));
  if (response.ok) return data;
  const kindly = KINDLY[error?.details?.reason] ?? KINDLY[error?.code];
  throw new Error(kindly ?? error?.message ?? "That did not work. Please try again.");
}

// crypto.randomUUID exists on https and localhost only, and a clock in a local network is on neither.
export const uuid = () =>
  "10000000-1000-4000-8000-100000000000".replace(/[018]/g, (digit) =>
    (digit ^ (crypto.getRandomValues(new Uint8Array(1))[0] & (15 >> (digit / 4)))).toString(16),
  );
