/** One attempt to connect, and the connection that becomes of it. */

import { Requests } from "./requests.js";

/** @import { AnyWebSocket, WebSocketClass } from "./types.js" */

const V2 = "lockstep.v2.json";
const V1 = "lockstep.v1.json"; // offered so that a server that knows no other says so
const OPEN = 1;

/** What belongs to one WebSocket, and ends with it. */
export class Line {
  /** The one it is open by. */
  token = "";
  isOnline = false;
  /** Whether REAUTH has no answer yet. */
  isRenewing = false;
  /** @type {number | undefined} */
  reconnectAfterMs;
  requests = new Requests((text) => this.send(text));
  /** @type {AnyWebSocket | null} */
  #socket = null;

  /**
   * @param {string} url
   * @param {WebSocketClass} WebSocket
   * @param {string} token
   * @param {() => void} onForeign the server speaks another protocol than v2
   * @param {(data: unknown) => void} onMessage
   * @param {(code: number, reason: string) => void} onClose
   */
  open(url, WebSocket, token, onForeign, onMessage, onClose) {
    this.token = token;
    const socket = new WebSocket(url, [V2, V1, ...(token ? [`bearer.${token}`] : [])]);
    this.#socket = socket;
    let hasOpened = false;
    socket.onopen = () => {
      hasOpened = true;
      if (socket.protocol !== V2) onForeign();
    };
    socket.onmessage = (/** @type {{ data: unknown }} */ { data }) => onMessage(data);
    socket.onclose = (/** @type {{ code: number, reason: string }} */ { code, reason }) => onClose(code, reason);
    // Node says nothing else where there is no server; the others say `close` as well, with no more in it.
    socket.onerror = () => {
      if (!hasOpened) onClose(1006, "");
    };
  }

  /** @param {string} text */
  send(text) {
    if (this.#socket?.readyState === OPEN) this.#socket.send(text);
  }

  /** What it still says is no longer about us. */
  drop() {
    const socket = this.#socket;
    this.#socket = null;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.onerror = () => {}; // the package `ws` throws where nobody listens
    socket.close();
  }
}
