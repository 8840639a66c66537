/** One thing to do later. */

export class Timer {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #id;

  get isSet() {
    return this.#id !== undefined;
  }

  /**
   * In place of what was to be done before.
   *
   * @param {() => void} then
   * @param {number} ms
   */
  set(then, ms) {
    this.clear();
    this.#id = setTimeout(() => {
      this.#id = undefined;
      then();
    }, ms);
  }

  clear() {
    clearTimeout(this.#id);
    this.#id = undefined;
  }
}
