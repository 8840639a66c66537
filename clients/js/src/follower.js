/** What is known of one session, kept up to date. */

import { backoffMs } from "./backoff.js";
import { applyChanges } from "./changes.js";
import { errorOf } from "./messages.js";
import { Timer } from "./timer.js";

/** @import { LockstepError } from "./errors.js" */
/** @import { PresenceChange, SessionMessage, Subscribed, Update } from "./messages.js" */
/** @import { Requests } from "./requests.js" */
/** @import { Presence, State, SubscriptionEvents, SubscriptionStatus } from "./types.js" */

// Asking again would be answered the same, until something has changed that the application knows of.
const FOR_GOOD = ["FORBIDDEN", "UNAUTHORIZED", "TOO_MANY_SUBSCRIPTIONS", "INVALID_MESSAGE"];

/**
 * One subscription, from connection to connection. It never invents a state: what it has is always one that the server had.
 *
 * Events come last in whatever leads to them, for a listener may do anything, also close or connect.
 */
export class Follower {
  /** @type {State | null} */
  state = null;
  /** @type {string | null} */
  position = null;
  /** @type {Presence | null} */
  presence = null;
  /** @type {SubscriptionStatus} */
  status = "waiting";
  #isSubscribed = false;
  #isAsked = false; // SUBSCRIBE or SYNC has no answer yet
  #mustAsk = true;
  #failures = 0;
  #timer = new Timer(); // runs until it is asked again, which the server could not answer
  #emit;
  #onReady;

  /**
   * @param {string} sessionId
   * @param {<Type extends keyof SubscriptionEvents>(type: Type, detail: SubscriptionEvents[Type]) => void} emit
   * @param {() => void} onReady called when there is something to ask
   */
  constructor(sessionId, emit, onReady) {
    this.sessionId = sessionId;
    this.#emit = emit;
    this.#onReady = onReady;
  }

  /** Whether the server may have this subscription, so that it must be told of its end. */
  get isKept() {
    return this.#isSubscribed || this.#isAsked;
  }

  /**
   * Ask for the state, or for what was missed, if that is due. Asked again of a subscription that it has, the server
   * answers with the state.
   *
   * @param {Requests} requests
   */
  ask(requests) {
    if (!this.#mustAsk || this.#isAsked || this.#timer.isSet || !requests.hasRoom) return;
    this.#mustAsk = false;
    this.#isAsked = true;
    const request = { type: "SUBSCRIBE", sessionId: this.sessionId, position: this.position ?? undefined };
    requests.send(JSON.stringify(request), (answer) => {
      this.#isAsked = false;
      if (answer.type === "SUBSCRIBED") this.#isSubscribed = true;
      if (this.status === "closed" || this.status === "refused") return;
      if (answer.type === "SUBSCRIBED") return this.#subscribed(answer);
      const error = errorOf(answer);
      if (FOR_GOOD.includes(error.code)) this.#refuse(error.code, error.message);
      else this.#failed(error);
    });
  }

  /**
   * A message about the session that answers nothing.
   *
   * @param {SessionMessage} message
   */
  receive(message) {
    if (message.type === "UNSUBSCRIBED" && this.isKept) {
      this.#isSubscribed = false;
      this.#refuse(message.code ?? "DISCONNECTED", message.message ?? "Disconnected");
    }
    // What is still said of an earlier subscription to the session is not about this one; and who was refused may have
    // been subscribed once more by what was asked before.
    if (!this.#isSubscribed || this.status === "refused") return;
    switch (message.type) {
      case "UPDATE":
        return this.#update(message);
      case "SNAPSHOT": {
        const { state, position, reason, timestamp } = message;
        return this.#show(state, position, { sync: reason !== "created", reason, timestamp, events: [] });
      }
      case "DELETED":
        return this.#gone("deleted");
      case "PRESENCE":
        return this.#presenceChanged(message);
      case "MESSAGE":
        return this.#emit("message", { message: message.message });
      case "ERROR":
        return this.#failed(errorOf(message));
    }
  }

  /**
   * The connection is no more: what this was, was so on that one.
   *
   * @param {SubscriptionStatus} status `waiting`, or how it has ended
   * @returns {boolean} whether that is something to `tell`
   */
  lost(status) {
    this.#answered();
    this.#isSubscribed = this.#isAsked = false;
    const isAnother = this.status !== status && !(this.status === "refused" && status === "waiting");
    if (isAnother) this.status = status;
    this.#mustAsk = this.status === "waiting";
    return isAnother;
  }

  /** Ask anew although it was refused. */
  again() {
    if (this.status !== "refused") return;
    this.#mustAsk = true;
    this.#setStatus("waiting");
    this.#onReady();
  }

  /**
   * @param {SubscriptionStatus} status nothing is said where it is another one by now
   * @param {string} [code]
   * @param {string} [reason]
   */
  tell(status, code, reason) {
    if (this.status === status) this.#emit("status", { status, code, reason });
  }

  /** Nothing is to be asked any more. */
  #answered() {
    this.#timer.clear();
    this.#mustAsk = false;
    this.#failures = 0;
  }

  /** @param {Subscribed} message */
  #subscribed({ updates, state, position, presence, timestamp }) {
    this.#answered();
    const had = this.presence;
    const { present = null, anonymous = 0, total = 0 } = presence ?? {};
    this.presence = presence ? { present, anonymous, total } : null;
    if (updates) {
      this.#setStatus("current");
      for (const update of updates) if (this.#isSubscribed) this.#update(update);
    } else if (state) {
      this.#show(state, position, { sync: true, reason: "requested", timestamp, events: [] });
    } else {
      this.#gone("missing");
    }
    if (this.#isSubscribed && (had || this.presence)) this.#emit("presence", { presence: this.presence });
  }

  /** @param {Update} message */
  #update({ from, position, changes, events, timestamp }) {
    if (this.state && from === this.position) {
      this.#show(applyChanges(this.state, changes), position, { sync: false, events, timestamp });
    } else {
      this.#mustAsk = true;
      this.#setStatus("waiting");
      this.#onReady();
    }
  }

  /**
   * @param {State} state
   * @param {string | null} position
   * @param {Omit<SubscriptionEvents["state"], "state">} how
   */
  #show(state, position, how) {
    this.state = state;
    this.position = position;
    this.#setStatus("current");
    if (this.#isSubscribed) this.#emit("state", { state, ...how });
  }

  /** @param {"missing" | "deleted"} how */
  #gone(how) {
    const { presence } = this;
    this.state = this.position = this.presence = null;
    this.#setStatus(how);
    if (this.#isSubscribed) this.#emit(how, {});
    if (this.#isSubscribed && presence) this.#emit("presence", { presence: null });
  }

  /**
   * Without `joined` and `left` there are too many for a list; after that, and at first, `joined` has everybody.
   *
   * @param {PresenceChange} message
   */
  #presenceChanged({ joined, left, anonymous, total }) {
    let present = null;
    if (joined || left) {
      const bySubject = new Map(this.presence?.present?.map((each) => [each.subject, each]));
      for (const { subject } of left ?? []) bySubject.delete(subject);
      for (const each of joined ?? []) bySubject.set(each.subject, each);
      present = [...bySubject.values()];
    }
    this.presence = { present, anonymous, total };
    this.#emit("presence", { presence: this.presence, joined, left });
  }

  /** @param {LockstepError} error after which it may be that what is known is no more so */
  #failed(error) {
    this.#mustAsk = true;
    this.#timer.set(this.#onReady, (error.retryAfterMs ?? 0) + backoffMs(this.#failures++));
    this.#setStatus("waiting");
    this.#emit("error", { error });
  }

  /**
   * @param {string} code
   * @param {string} reason
   */
  #refuse(code, reason) {
    this.#mustAsk = false;
    this.#setStatus("refused", code, reason);
  }

  /**
   * @param {SubscriptionStatus} status
   * @param {string} [code]
   * @param {string} [reason]
   */
  #setStatus(status, code, reason) {
    if (this.status === status) return;
    this.status = status;
    this.tell(status, code, reason);
  }
}
