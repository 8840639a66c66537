/** What the server says, in protocol v2. */

import { LockstepError } from "./errors.js";
import { isObject } from "./values.js";

/** @import { Access, Changes, Event, Message, Present, Result, SnapshotReason, State } from "./types.js" */

/** @typedef {{ sessionId: string, timestamp: number }} OfSession */
/** @typedef {OfSession & { type: "UPDATE", from: string, position: string, changes: Changes, events: Event[] }} Update */
/** @typedef {{ present?: Present[], anonymous: number, total: number }} PresenceList */
/**
 * @typedef {OfSession & { type: "SUBSCRIBED", id: number, updates?: Update[], position: string | null, state: State | null,
 *   presence?: PresenceList }} Subscribed
 * @typedef {OfSession & { type: "SNAPSHOT", id?: number, position: string | null,
 *   reason: SnapshotReason, state: State }} Snapshot
 * @typedef {OfSession & { type: "PRESENCE", joined?: Present[], left?: { subject: string }[], anonymous: number,
 *   total: number }} PresenceChange
 * @typedef {{ type: "PONG", id: string, timestamp: number, receivedAt: number, errorMs: number | null,
 *   standsStill?: true }} Pong
 * @typedef {{ type: "ERROR", id?: number, sessionId?: string, code: string, message: string, details?: unknown,
 *   retryAfterMs?: number }} ErrorMessage
 * @typedef {{ type: "UNSUBSCRIBED", id?: number, sessionId: string, code?: string, message?: string }} Unsubscribed
 * @typedef {OfSession & { type: "MESSAGE", message: Message }} Relayed
 * @typedef {OfSession & { type: "DELETED" }} Deleted
 */
/** @typedef {Update | Snapshot | PresenceChange | Unsubscribed | Relayed | Deleted | ErrorMessage} SessionMessage */
/** @typedef {OfSession & { type: "RESULT", id: number } & Result} ResultMessage */
/** @typedef {Subscribed | Snapshot | Unsubscribed | ResultMessage | ErrorMessage | { type: "REAUTHENTICATED", id: number }} Answer */
/**
 * @typedef {SessionMessage | Answer | Pong | { type: "WELCOME", timestamp: number } & Access |
 *   { type: "GOING_AWAY", reconnectAfterMs: number }} ServerMessage
 */

/** @typedef {(value: unknown) => boolean} Check */
/** @typedef {Record<string, Check>} Shape */

/** @type {Check} */
const isNumber = Number.isFinite;
/** @type {Check} */
const isText = (value) => typeof value === "string";
/** @type {(shape: Shape) => Check} */
const has = (shape) => (value) => isObject(value) && Object.keys(shape).every((name) => shape[name]?.(value[name]));
/** @type {(isOne: Check) => Check} */
const areAll = (isOne) => (value) => Array.isArray(value) && value.every(isOne);
/** @type {(check: Check, none?: null) => Check} */
const orNone = (check, none) => (value) => value === none || check(value);

const areObjects = areAll(isObject);
const isState = has({ participants: areObjects });
const areSubjects = orNone(areAll(has({ subject: isText })));
const presence = { anonymous: isNumber, total: isNumber, present: areSubjects, joined: areSubjects, left: areSubjects };
const committed = { position: isText, timestamp: isNumber };
const state = { position: orNone(isText, null), timestamp: isNumber };
const isUpdate = has({
  ...committed,
  from: isText,
  changes: has({ participants: orNone(areObjects) }),
  events: areObjects,
});

/**
 * By type: whether a message has what is needed of it.
 *
 * @type {Record<string, Check>}
 */
const IS_WHOLE = {
  WELCOME: has({ timestamp: isNumber }),
  PONG: has({ timestamp: isNumber, receivedAt: isNumber }),
  SUBSCRIBED: (message) =>
    has({ presence: orNone(has(presence)) })(message) &&
    [{ updates: areAll(isUpdate) }, { ...state, state: orNone(isState, null) }].some((shape) => has(shape)(message)),
  SNAPSHOT: has({ ...state, state: isState }),
  UPDATE: isUpdate,
  PRESENCE: has(presence),
  MESSAGE: has({ message: has({ type: isText }) }),
  RESULT: has(committed),
  ERROR: has({ code: isText, message: isText }),
  GOING_AWAY: has({ reconnectAfterMs: isNumber }),
};

/**
 * What the server said. What is no message (the page of a proxy, a payload gone wrong) is read as an ERROR of the code
 * INVALID_ANSWER, about the request and the session that it names, if any.
 *
 * @param {unknown} data
 * @returns {ServerMessage}
 */
export function parse(data) {
  /** @type {unknown} */
  let message;
  try {
    message = JSON.parse(/** @type {string} */ (data));
  } catch {
    // Said below.
  }
  const { type, id, sessionId } = isObject(message) ? message : {};
  const isWhole = typeof type === "string" && (!Object.hasOwn(IS_WHOLE, type) || IS_WHOLE[type]?.(message));
  if (isWhole) return /** @type {ServerMessage} */ (/** @type {unknown} */ (message));
  const broken = { type: "ERROR", code: "INVALID_ANSWER", message: "What came is no message", id, sessionId };
  return /** @type {ErrorMessage} */ (broken);
}

/**
 * What went wrong, by an answer that is not the one hoped for: one that answers something else is none.
 *
 * @param {Answer | ErrorMessage} answer
 */
export function errorOf(answer) {
  if (answer.type === "ERROR") return new LockstepError(answer.code, answer.message, answer);
  return new LockstepError("INVALID_ANSWER", `What came answers something else: ${answer.type}`);
}
