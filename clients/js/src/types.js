/**
 * Shapes: what the server says and is told, by the names that they have on the wire, and the details of events.
 *
 * Instants are ISO 8601 (`2024-01-01T00:00:00.000Z`) where the name ends in `_at`, and epoch ms in `_ms`; durations are
 * ms. docs/protocol.md says what each field means.
 */

/** @import { LockstepError } from "./errors.js" */

/* States. */

/** @typedef {"per_participant" | "per_cycle" | "per_group" | "global" | "count_up"} SyncMode */
/** @typedef {"pending" | "running" | "paused" | "expired" | "completed" | "cancelled"} SessionStatus */
/** @typedef {"flag" | "advance" | "expire"} OnTimeout what becomes of a clock that has run out */

/**
 * @typedef {object} Participant
 * @property {string} participant_id
 * @property {number} participant_index
 * @property {number | null} budget_ms what it began with
 * @property {number | null} total_time_ms what is left at `cycle_started_at`
 * @property {number | null} time_remaining_ms the same
 * @property {number} time_used_ms
 * @property {number} cycle_count turns that have ended
 * @property {boolean} is_active also while paused
 * @property {boolean} has_expired
 * @property {string} [group_id]
 */

/**
 * What remains, or in kind "elapsed" has passed, at `cycle_started_at`.
 *
 * @template {string} Kind
 * @typedef {{ kind: Kind, remaining_ms: number }} CountdownClock
 */
/** @typedef {{ kind: "elapsed", elapsed_ms: number }} ElapsedClock */
/** @typedef {CountdownClock<"participant" | "group" | "cycle" | "session"> | ElapsedClock} Clock */

/**
 * What states of all modes have. `clock` is null once the session is over.
 *
 * @template {SyncMode} Mode
 * @template {Clock} ClockOfMode
 * @typedef {{
 *   session_id: string,
 *   epoch: string,
 *   version: number,
 *   commit: string,
 *   deadline_ms: number | null,
 *   sync_mode: Mode,
 *   status: SessionStatus,
 *   presence?: true,
 *   participants: Participant[],
 *   active_participant_id: string | null,
 *   total_time_ms: number | null,
 *   time_per_cycle_ms: number | null,
 *   increment_ms: number,
 *   max_time_ms?: number,
 *   clock: ClockOfMode | null,
 *   on_timeout: OnTimeout,
 *   cycle_started_at: string | null,
 *   session_started_at: string | null,
 *   session_completed_at: string | null,
 *   created_at: string,
 *   updated_at: string,
 *   metadata: Record<string, unknown>,
 * }} StateOf
 */

/** @typedef {StateOf<"per_participant", CountdownClock<"participant">>} PerParticipantState a bank for each */
/** @typedef {StateOf<"per_group", CountdownClock<"group">>} PerGroupState a bank for each group */
/** @typedef {StateOf<"per_cycle", CountdownClock<"cycle">> & { time_per_cycle_ms: number }} PerCycleState one per turn */
/** @typedef {StateOf<"global", CountdownClock<"session">> & { total_time_ms: number, is_flagged: boolean }} GlobalState one for all */
/** @typedef {StateOf<"count_up", ElapsedClock> & { lap_count: number, lap_elapsed_ms: number }} CountUpState */

/**
 * A session's state; `sync_mode` tells which.
 *
 * @typedef {PerParticipantState | PerGroupState | PerCycleState | GlobalState | CountUpState} State
 */

/** @typedef {{ participant_id: string, removed?: true } & Partial<Participant>} ParticipantChanges */

/**
 * Fields of a state that have moved, with their new values; of participants those that moved, with theirs.
 *
 * @typedef {Record<string, unknown> & { participants?: ParticipantChanges[] }} Changes
 */

/* What has happened. */

/**
 * @typedef {"created" | "started" | "switched" | "paused" | "resumed" | "adjusted" | "completed" | "cancelled" |
 *   "seated" | "unseated" | "annotated" | "flagged" | "advanced" | "expired"} EventType
 */

/**
 * One version of a session.
 *
 * @typedef {object} Event
 * @property {number} version
 * @property {EventType} type
 * @property {string} at
 * @property {string} [actor] the `sub` of the token by which it was asked for
 * @property {Record<string, unknown>} [data] what the command carried
 * @property {number} [lap_ms]
 * @property {string} [expired_participant_id] whose turn ended after its clock had run out
 */

/**
 * One version as the history has it, with what it changed.
 *
 * @typedef {Event & { request_id?: string, changes: Changes }} HistoryEvent
 */

/** @typedef {{ type: string } & Record<string, unknown>} Message what an application publishes to a session's clients */

/** @typedef {{ subject: string, connections: number, since: string }} Present */

/**
 * Who is connected: each subject (the `sub` of its token) once, `anonymous` without one; null instead of the list where
 * there are too many for one.
 *
 * @typedef {{ present: Present[] | null, anonymous: number, total: number }} Presence
 */

/* What can be asked for. In what is sent, null or undefined is the same as absent. */

/**
 * @typedef {object} NewParticipant
 * @property {string | undefined} [participant_id] a UUID; made where there is none
 * @property {number | undefined} [participant_index]
 * @property {number | undefined} [total_time_ms]
 * @property {string | undefined} [group_id]
 */

/**
 * @typedef {object} NewSession
 * @property {SyncMode} sync_mode
 * @property {string | undefined} [session_id] a UUID; made where there is none
 * @property {NewParticipant[] | undefined} [participants]
 * @property {number | undefined} [total_time_ms]
 * @property {number | undefined} [time_per_cycle_ms]
 * @property {number | undefined} [increment_ms]
 * @property {number | undefined} [max_time_ms]
 * @property {OnTimeout | undefined} [on_timeout]
 * @property {object | undefined} [metadata]
 * @property {boolean | undefined} [presence]
 */

/**
 * What each command may say: `expected_version` is the version that its sender saw, `data` up to 1 KiB that are kept in
 * the command's event and told with it.
 *
 * @typedef {{ expected_version?: number | undefined, data?: object | undefined }} AnyCommandBody
 */

/**
 * The bodies of commands, by name.
 *
 * @typedef {object} CommandBodies
 * @property {AnyCommandBody & { participant_id?: string | undefined }} start
 * @property {AnyCommandBody & { next_participant_id?: string | undefined, expected_participant_id?: string | undefined }} switch
 * @property {AnyCommandBody} pause
 * @property {AnyCommandBody} resume
 * @property {AnyCommandBody & { delta_ms: number, target?: string | undefined }} adjust
 * @property {AnyCommandBody} complete
 * @property {AnyCommandBody} cancel
 * @property {AnyCommandBody & { participants: NewParticipant[] }} seat
 * @property {AnyCommandBody & { participant_id: string }} unseat
 * @property {AnyCommandBody & { metadata: object }} annotate
 */

/** @typedef {keyof CommandBodies} CommandName */

/**
 * A command was applied, and led to the state at `position`.
 *
 * @typedef {object} Result
 * @property {string} position
 * @property {number} timestamp epoch ms
 * @property {boolean} [replayed] it had been applied before, by the same key
 * @property {number} [lap_ms]
 * @property {string} [expired_participant_id]
 */

/**
 * @typedef {object} CommandOptions
 * @property {string | undefined} [idempotencyKey] one is made where there is none
 * @property {AbortSignal | undefined} [signal] ends the waiting; whether the command was applied is then unknown
 */

/* The client. */

/** @typedef {string | (() => string | Promise<string>)} Token a JWT, or a function that gives one */

/**
 * What a WebSocket must have: those of browsers, of Node and of the package `ws` do.
 *
 * @typedef {{
 *   readonly readyState: number,
 *   readonly protocol: string,
 *   onopen: unknown, onmessage: unknown, onclose: unknown, onerror: unknown,
 *   send(data: string): void,
 *   close(): void,
 * }} AnyWebSocket
 */
/** @typedef {new (url: string, protocols: string[]) => AnyWebSocket} WebSocketClass */

/**
 * @typedef {"connecting" | "online" | "unsure" | "offline" | "refused" | "closed"} LinkStatus
 * @typedef {"waiting" | "current" | "missing" | "deleted" | "refused" | "closed"} SubscriptionStatus
 */

/**
 * What the server lets a connection do, by its token: no scope where the server has no keys, and lets everybody do
 * everything; no subject where the token names none.
 *
 * @typedef {{ scope?: "view" | "play" | "control" | "admin", subject?: string }} Access
 */

/**
 * Details of the events of a Lockstep. Of a status that an end has led to, `code` and `reason` are why, as those of a
 * LockstepError; `closeCode` is the WebSocket's own where it has closed, `error` what a token function threw, or the
 * making of the WebSocket, and `retryMs` after how long it comes back.
 *
 * @typedef {object} LockstepEvents
 * @property {{ status: LinkStatus, code?: string, reason?: string, closeCode?: number, error?: unknown, retryMs?: number
 *   }} status
 * @property {{ error: LockstepError }} error
 */

/** @typedef {"created" | "requested" | "skipped" | "repair" | "foreign"} SnapshotReason */

/**
 * A state to show. With `sync` it stands instead of whatever was shown, and `reason` says why it came; without, `events`
 * led to it from the one before.
 *
 * @typedef {{ state: State, sync: boolean, timestamp: number, events: Event[], reason?: SnapshotReason }} StateDetail
 */

/**
 * Details of the events of a Subscription.
 *
 * @typedef {object} SubscriptionEvents
 * @property {StateDetail} state
 * @property {{}} missing
 * @property {{}} deleted
 * @property {{ presence: Presence | null, joined?: Present[] | undefined,
 *   left?: { subject: string }[] | undefined }} presence
 * @property {{ message: Message }} message
 * @property {{ error: LockstepError }} error
 * @property {{ status: SubscriptionStatus, code?: string | undefined, reason?: string | undefined }} status
 */

/**
 * An EventTarget whose events are CustomEvents with these details.
 *
 * @template Details
 * @typedef {Omit<EventTarget, "addEventListener" | "removeEventListener"> & {
 *   addEventListener<Type extends keyof Details & string>(
 *     type: Type, listener: (event: CustomEvent<Details[Type]>) => void, options?: boolean | AddEventListenerOptions
 *   ): void,
 *   removeEventListener<Type extends keyof Details & string>(
 *     type: Type, listener: (event: CustomEvent<Details[Type]>) => void, options?: boolean | EventListenerOptions
 *   ): void,
 * }} TypedEventTarget
 */

export {};
