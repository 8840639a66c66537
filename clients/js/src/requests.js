/** Requests of one connection. */

/** @import { Answer } from "./messages.js" */

const MAX_UNDER_WAY = 12; // of more than 16 the server leaves the rest unread, and so our PINGs

/** Each request has an id and gets one answer. They are as old as their connection: what was lost with it is asked anew. */
export class Requests {
  #lastId = 0;
  #send;
  /** @type {Map<unknown, (answer: Answer) => void>} */
  #underWay = new Map();

  /** @param {(text: string) => void} send */
  constructor(send) {
    this.#send = send;
  }

  get hasRoom() {
    return this.#underWay.size < MAX_UNDER_WAY;
  }

  /**
   * @param {string} text the request as JSON, but for its id
   * @param {(answer: Answer) => void} onAnswer
   */
  send(text, onAnswer) {
    const id = ++this.#lastId;
    this.#underWay.set(id, onAnswer);
    this.#send(`{"id":${id},${text.slice(1)}`);
  }

  /**
   * @param {{ id?: unknown }} message
   * @returns {boolean} whether it was the answer to one of them
   */
  receive(message) {
    const onAnswer = this.#underWay.get(message.id);
    this.#underWay.delete(message.id);
    onAnswer?.(/** @type {Answer} */ (message));
    return onAnswer !== undefined;
  }
}
