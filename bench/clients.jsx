/** Fifty clocks in a page, drawn in one way or another: what bench/clients.py measures. */
import { useSyncExternalStore } from "react";
import { createRoot } from "react-dom/client";

import { formatClock, Lockstep, sessionClock } from "../clients/js/src/index.js";
import { useClock, useSession } from "../clients/js/src/react.js";

const counts = { frames: 0, renders: 0 };

/** As the hook does it: every frame looks at the text, and only another text is rendered. */
function TextChecked({ session, decimals }) {
  const { text } = useClock(session, { decimals });
  counts.renders += 1;
  return <output>{text}</output>;
}

const waiting = new Set();

function subscribe(onFrame) {
  waiting.add(onFrame);
  return () => waiting.delete(onFrame);
}

/** The same without the look: one loop of frames for all, and each clock is rendered in each of them. */
function EachFrame({ session, decimals }) {
  useSyncExternalStore(subscribe, () => counts.frames);
  counts.renders += 1;
  return <output>{formatClock(sessionClock(session.state, session.time.now()).ms, { decimals })}</output>;
}

const NoClock = () => null;

function Board({ lockstep, sessionId, Clock, decimals }) {
  const { session, state } = useSession(lockstep, sessionId);
  return <p>{state ? <Clock session={session} decimals={decimals} /> : "waits"}</p>;
}

/** The clocks of these sessions; `counts` says how many frames there were, and how often a clock was rendered. */
window.show = ({ url, sessionIds, way, decimals }) => {
  const lockstep = new Lockstep(url);
  const Clock = { TextChecked, EachFrame, NoClock }[way];
  const boards = sessionIds.map((sessionId) => (
    <Board key={sessionId} {...{ lockstep, sessionId, Clock, decimals }} />
  ));
  createRoot(document.body.appendChild(document.createElement("main"))).render(boards);
};
window.areShown = () => {
  const texts = [...document.querySelectorAll("main p")].map((board) => board.textContent);
  return texts.length > 0 && !texts.includes("waits");
};
window.counts = counts;
requestAnimationFrame(function count() {
  counts.frames += 1;
  for (const onFrame of waiting) onFrame();
  requestAnimationFrame(count);
});
