/** What can go wrong, as one class. */

/**
 * Why something was not done: a command, a request, a subscription, or what an event tells of.
 *
 * `code` is the server's (SESSION_NOT_FOUND, CONFLICT, FORBIDDEN, RATE_LIMIT_EXCEEDED ..., see docs/protocol.md), or
 * this client's own: UNREACHABLE, INVALID_ANSWER, INVALID_MESSAGE, UNSUPPORTED_PROTOCOL, DISCONNECTED,
 * MESSAGE_TOO_BIG, TOKEN_UNAVAILABLE.
 */
export class LockstepError extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {{ details?: unknown, retryAfterMs?: number | undefined, status?: number | undefined, cause?: unknown }} [more]
   */
  constructor(code, message, { details, retryAfterMs, status, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "LockstepError";
    this.code = code;
    /** What the server says besides: of VALIDATION_ERROR a list of {field, message, code}, else an object or nothing. */
    this.details = details;
    /** The least to wait before trying again, where that may help. */
    this.retryAfterMs = retryAfterMs;
    /** The HTTP status, of an answer by REST. */
    this.status = status;
  }
}
