/**
 * Hooks for React: `useSession`, `useClock`, `usePresence`.
 *
 * Nothing is opened while rendering, so a page can also be rendered on a server; components that show the same session
 * share one subscription, which ends with the last of them.
 *
 * @module lockstep-client/react
 */

import { useMemo, useSyncExternalStore } from "react";

import { ClockView, NO_FACE } from "./clock-view.js";
import { LockstepError } from "./errors.js";

/** @import { Lockstep } from "./lockstep.js" */
/** @import { Subscription } from "./subscription.js" */
/** @import { Presence, State, SubscriptionStatus } from "./types.js" */

/** @typedef {import("./clock-view.js").ClockFace} ClockFace */
/** @typedef {import("./clock-view.js").ClockOptions} ClockOptions */
/** @typedef {{ session: Subscription, holders: number, code: string | null }} Held */

/** @type {WeakMap<Lockstep, Map<string, Held>>} by id: what components show, and what has commands under way */
const heldOf = new WeakMap();

/**
 * @param {Lockstep} lockstep
 * @param {string} sessionId
 * @returns {{ session: Subscription, release: () => void }}
 */
function hold(lockstep, sessionId) {
  const sessions = heldOf.get(lockstep) ?? new Map();
  heldOf.set(lockstep, sessions);
  let held = sessions.get(sessionId);
  if (!held || held.session.status === "closed") {
    held = open(lockstep, sessionId);
    sessions.set(sessionId, held);
  }
  held.holders += 1;
  const release = () => {
    held.holders -= 1;
    // Later, for who leaves may be back at once: in StrictMode, and where one component takes another's place.
    queueMicrotask(() => {
      if (held.holders > 0 || sessions.get(sessionId) !== held) return;
      sessions.delete(sessionId);
      held.session.close();
    });
  };
  return { session: held.session, release };
}

/**
 * @param {Lockstep} lockstep
 * @param {string} sessionId
 */
function open(lockstep, sessionId) {
  /** @type {Held} */
  const held = { session: lockstep.subscribe(sessionId), holders: 0, code: null };
  held.session.addEventListener("status", ({ detail }) => (held.code = detail.code ?? null));
  return held;
}

/**
 * @typedef {object} SessionView
 * @property {Subscription | null} session null until the component has been mounted
 * @property {State | null} state null while nothing is known, and where there is no session
 * @property {SubscriptionStatus} status
 * @property {string | null} code why the status is "refused", as a LockstepError has it: UNAUTHORIZED, FORBIDDEN ...
 * @property {boolean} isCurrent whether the state is known to be the latest; false while offline
 */

const CHANGES = /** @type {const} */ (["state", "missing", "deleted", "status"]);

/** @type {SessionView} */
const NOTHING = { session: null, state: null, status: "waiting", code: null, isCurrent: false };

const FIELDS = /** @type {const} */ (["session", "state", "status", "code", "isCurrent"]);

/** One component's look at one session, or at none. */
class SessionStore {
  #lockstep;
  #sessionId;
  #view = NOTHING;

  /**
   * @param {Lockstep | null} lockstep
   * @param {string | null} sessionId
   */
  constructor(lockstep, sessionId) {
    this.#lockstep = lockstep;
    this.#sessionId = sessionId?.toLowerCase() ?? null;
  }

  /** @param {() => void} onChange */
  subscribe = (onChange) => {
    if (!this.#lockstep || this.#sessionId === null) return () => {};
    const { session, release } = hold(this.#lockstep, this.#sessionId);
    const watching = new AbortController();
    const { signal } = watching;
    for (const type of CHANGES) session.addEventListener(type, onChange, { signal });
    // A connection that is lost leaves the subscription as it is, but no longer certain.
    this.#lockstep.addEventListener("status", onChange, { signal });
    return () => {
      watching.abort();
      release();
    };
  };

  /** The same object as before where nothing differs. A session that another component holds is seen at once. */
  view = () => {
    const held = this.#lockstep && heldOf.get(this.#lockstep)?.get(this.#sessionId ?? "");
    if (!held) return NOTHING;
    const { session, code } = held;
    const { state, status, isCurrent } = session;
    /** @type {SessionView} */
    const view = { session, state, status, code, isCurrent };
    if (FIELDS.some((field) => view[field] !== this.#view[field])) this.#view = view;
    return this.#view;
  };

  /** @type {Subscription["command"]} held until it has its answer, whether or not the component is still there */
  command = (name, body, options) => {
    if (!this.#lockstep || this.#sessionId === null) {
      return Promise.reject(new LockstepError("DISCONNECTED", "There is no session to send a command to"));
    }
    const { session, release } = hold(this.#lockstep, this.#sessionId);
    return session.command(name, body, options).finally(release);
  };
}

/**
 * Follow a session.
 *
 * It is subscribed to when the component is mounted, or when another id is given, and left when the last component that
 * follows it has gone. Null, for either argument, is for what is not known yet: nothing is followed then.
 *
 * `command` sends a command to the session; it is the same function as long as the session is the same.
 *
 * @param {Lockstep | null} lockstep make it once, outside of components: each is a connection of its own
 * @param {string | null} sessionId
 * @returns {SessionView & { command: Subscription["command"] }}
 */
export function useSession(lockstep, sessionId) {
  const store = useMemo(() => new SessionStore(lockstep, sessionId), [lockstep, sessionId]);
  const view = useSyncExternalStore(store.subscribe, store.view, () => NOTHING);
  return useMemo(() => ({ ...view, command: store.command }), [view, store]);
}

/**
 * Who is connected to a session that was created with presence.
 *
 * @param {Subscription | null} session as `useSession` returns it
 * @returns {Presence | null} null while it is not known
 */
export function usePresence(session) {
  const store = useMemo(
    () => ({
      /** @param {() => void} onChange */
      subscribe: (onChange) => {
        const watching = new AbortController();
        for (const type of /** @type {const} */ (["presence", "missing", "deleted"])) {
          session?.addEventListener(type, onChange, { signal: watching.signal });
        }
        return () => watching.abort();
      },
      presence: () => session?.presence ?? null,
    }),
    [session],
  );
  return useSyncExternalStore(store.subscribe, store.presence, () => null);
}

/**
 * A clock of a session, drawn on animation frames: the component is rendered anew only when what it shows differs.
 *
 * @param {Subscription | null} session as `useSession` returns it
 * @param {ClockOptions} [options]
 * @returns {ClockFace}
 */
export function useClock(session, { participantId, shows = "time", decimals, decimalsBelowMs } = {}) {
  const clock = useMemo(
    () => new ClockView(session, { participantId, shows, decimals, decimalsBelowMs }),
    [session, participantId, shows, decimals, decimalsBelowMs],
  );
  return useSyncExternalStore(clock.subscribe, clock.face, () => NO_FACE);
}
