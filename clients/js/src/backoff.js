/** How long to wait before the next attempt. */

/**
 * How long to wait before attempt number `attempt` (from 0) to come back: anything up to a limit that doubles,
 * so that the clients of a server that was restarted don't all return in the same moment ("full jitter").
 */
export function backoffMs(attempt, random = Math.random) {
  return random() * Math.min(15_000, 500 * 2 ** attempt);
}
