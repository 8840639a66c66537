/** The quiz's own back end, and what both its pages show of a session. */

import { formatClock, sessionClock } from "./client/index.js";

export const $ = (id) => document.getElementById(id);

/** The answer of the back end. Throws an Error whose message is for people. */
export async function ask(method, path, body, token) {
  const headers = { "Content-Type": "application/json", ...(token && { Authorization: `Bearer ${token}` }) };
  let response;
  try {
    response = await fetch(`api/quizzes${path}`, { method, headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Error("No answer. Please try again.");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? "That did not work. Please try again.");
  return answer;
}

/** Do it, and say what went wrong. */
export async function attempt(deed) {
  $("error").textContent = "";
  try {
    await deed();
  } catch (error) {
    $("error").textContent = error.message;
  }
}

/** The number of the question that is being asked, from 1; 0 before the first. */
export function questionOf(state, host) {
  if (state.status === "pending") return 0;
  return state.participants.find((each) => each.participant_id === host).cycle_count + 1;
}

export const isOver = (state) => ["completed", "expired", "cancelled"].includes(state.status);
export const isTimeUp = (state) => state.participants.some((each) => each.has_expired);

const LINK = { connecting: "Connecting…", unsure: "Checking…", offline: "Reconnecting…", refused: "Not connected" };

/** Show the connection's status, and the clock on each frame. */
export function showTime(lockstep, session) {
  lockstep.addEventListener("status", ({ detail }) => ($("link").textContent = LINK[detail.status] ?? ""));
  const draw = () => {
    const { state } = session;
    const clock = state && sessionClock(state, lockstep.time.now());
    const text = clock ? formatClock(clock.ms) : "-";
    if ($("clock").textContent !== text) $("clock").textContent = text;
    $("clock").toggleAttribute("data-over", Boolean(state) && isTimeUp(state));
    requestAnimationFrame(draw);
  };
  draw();
}

/** The title and the question, which are the session's metadata. */
export function showQuestion(state, host) {
  const number = questionOf(state, host);
  document.title = state.metadata.title;
  $("title").textContent = state.metadata.title;
  $("question").textContent = number ? (state.metadata.question ?? "") : "";
  if (isOver(state)) $("number").textContent = "The quiz is over";
  else if (number === 0) $("number").textContent = "It begins soon";
  else $("number").textContent = `Question ${number}${isTimeUp(state) ? ": time is up" : ""}`;
}

/** What others do at the same moment needs to be read once: `read` runs again after, not beside, itself. */
export function oneAtATime(read) {
  let isReading = false;
  let isWanted = false;
  return async function again() {
    isWanted = true;
    if (isReading) return;
    isReading = true;
    try {
      while (isWanted) {
        isWanted = false;
        await read();
      }
    } finally {
      isReading = false;
    }
  };
}
