/** What the server says, in protocol v2. */

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

/** @typedef {Record<string, unknown>} Fields */

/** @type {(value: unknown) => value is Fields} */
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
/** @type {(isOne: (value: unknown) => boolean, value: unknown) => boolean} */
const isListOf = (isOne, value) => Array.isArray(value) && value.every(isOne);
/** @type {(value: unknown) => boolean} */
const isText = (value) => typeof value === "string";
/** @type {(value: unknown) => boolean} */
const isState = (value) => isObject(value) && isListOf(isObject, value.participants);
/** @type {(value: unknown) => boolean} */
const isUpdate = (value) =>
  isObject(value) &&
  isText(value.from) &&
  isText(value.position) &&
  Number.isFinite(value.timestamp) &&
  isObject(value.changes) &&
  isListOf(isObject, value.changes.participants ?? []) &&
  isListOf(isObject, value.events);
/** @type {(value: unknown) => boolean} */
const areSubjects = (value) =>
  value === undefined || isListOf((one) => isObject(one) && typeof one.subject === "string", value);
/** @type {(value: Fields) => boolean} */
const isPresence = (value) =>
  Number.isFinite(value.anonymous) &&
  Number.isFinite(value.total) &&
  [value.present, value.joined, value.left].every(areSubjects);
/** @type {(value: unknown) => boolean} */
const isPosition = (value) => value === null || typeof value === "string";

/**
 * By type: whether a message has what is needed of it.
 *
 * @type {Record<string, (message: Fields) => boolean>}
 */
const IS_WHOLE = {
  WELCOME: ({ timestamp }) => Number.isFinite(timestamp),
  PONG: ({ timestamp, receivedAt }) => Number.isFinite(timestamp) && Number.isFinite(receivedAt),
  SUBSCRIBED: ({ updates, state, position, presence, timestamp }) =>
    (updates
      ? isListOf(isUpdate, updates)
      : isPosition(position) && (state === null || isState(state)) && Number.isFinite(timestamp)) &&
    (presence === undefined || (isObject(presence) && isPresence(presence))),
  SNAPSHOT: ({ state, position, timestamp }) => isState(state) && isPosition(position) && Number.isFinite(timestamp),
  UPDATE: isUpdate,
  PRESENCE: isPresence,
  MESSAGE: ({ message }) => isObject(message) && isText(message.type),
  RESULT: ({ position, timestamp }) => isText(position) && Number.isFinite(timestamp),
  ERROR: ({ code, message }) => isText(code) && isText(message),
  GOING_AWAY: ({ reconnectAfterMs }) => Number.isFinite(reconnectAfterMs),
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
  /** @type {Fields} */
  const fields = isObject(message) ? message : {};
  const { type, id, sessionId } = fields;
  const isWhole = typeof type === "string" && (!Object.hasOwn(IS_WHOLE, type) || IS_WHOLE[type]?.(fields));
  if (isWhole) return /** @type {ServerMessage} */ (/** @type {unknown} */ (message));
  const broken = { type: "ERROR", code: "INVALID_ANSWER", message: "The server sent what is no message", id, sessionId };
  return /** @type {ErrorMessage} */ (broken);
}
