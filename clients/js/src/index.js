/**
 * Lockstep for browsers and other programs that have `WebSocket`, `EventTarget` and `performance`.
 *
 * @module lockstep-client
 */

export * from "./backoff.js";
export * from "./changes.js";
export * from "./clocks.js";
export * from "./errors.js";
export * from "./lockstep.js";
export * from "./server-time.js";
export { Subscription } from "./subscription.js";
export * from "./types.js";
