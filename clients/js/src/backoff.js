/** Whether to come back after a connection has ended, and when. */

/** The token has run out, or is not good: another one may be. */
export const TOKEN_REFUSED = 4501;

/**
 * What a close code of the WebSocket asks for. That a session was deleted is never said by one: a bare 1000 can come
 * from anything on the way.
 *
 * @param {number} code
 * @returns {"retry" | "refused"} come back, after 4501 with another token; don't come back like this
 */
export function afterClose(code) {
  return code === 1008 || (code >= 4500 && code <= 4999 && code !== TOKEN_REFUSED) ? "refused" : "retry";
}

/**
 * How long to wait before attempt number `attempt` (from 0) to come back: anything up to a limit that doubles,
 * so that the clients of a server that was restarted don't all return in the same moment ("full jitter").
 *
 * @param {number} attempt
 * @param {() => number} [random] in [0, 1)
 * @returns {number} ms
 */
export function backoffMs(attempt, random = Math.random) {
  return random() * Math.min(15_000, 500 * 2 ** attempt);
}
