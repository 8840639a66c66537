/** Tones and vibration as a clock gets low and at zero, once somebody has asked for them. */

import { cuesOf, zerosIn } from "./cues.js";
import { $ } from "./dom.js";

const ASKED = "lockstep-sound";
const HEARD = "lockstep-heard"; // the latest cues, of all tabs of this browser
const REMEMBERED = 20;
const LATE_MS = 2000; // what is noticed later than this is past
// Of several tabs the one that somebody looks at is the first to say something.
const UNFOCUSED_WAITS_MS = 150;
const HIDDEN_WAITS_MS = 300;
const CUES = {
  low: { tones: [[880, 0], [880, 0.18]], lengthS: 0.12, vibration: [120, 80, 120] },
  zero: { tones: [[784, 0], [659, 0.25], [523, 0.5]], lengthS: 0.22, vibration: [400, 120, 400] },
};

let context;
let sessionId;
let cues = [];
let heardUntilMs = Infinity;

// localStorage may be forbidden: then this tab remembers for itself.
const here = new Map();

function remember(key, value) {
  here.set(key, value);
  try {
    localStorage.setItem(key, value);
  } catch {}
}

function remembered(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return here.get(key) ?? null;
  }
}

const isAskedFor = () => $("sound").getAttribute("aria-pressed") === "true";

export function bindSound() {
  $("sound").hidden = false;
  $("sound").setAttribute("aria-pressed", String(remembered(ASKED) === "on"));
  $("sound").onclick = () => {
    const isOn = !isAskedFor();
    $("sound").setAttribute("aria-pressed", String(isOn));
    remember(ASKED, isOn ? "on" : "off");
    if (isOn) play(CUES.low); // so it is known what will be heard, and the browser knows that it was asked for
  };
  // A browser lets no page be heard that nobody has touched.
  for (const touch of ["pointerdown", "keydown"]) addEventListener(touch, () => isAskedFor() && wake());
}

function wake() {
  context ??= globalThis.AudioContext && new AudioContext();
  if (context?.state === "suspended") context.resume();
}

function play({ tones, lengthS, vibration }) {
  wake();
  navigator.vibrate?.(vibration);
  if (!context) return;
  for (const [hertz, afterS] of tones) {
    const [tone, volume] = [context.createOscillator(), context.createGain()];
    const beginS = context.currentTime + afterS;
    tone.frequency.value = hertz;
    volume.gain.setValueAtTime(0, beginS);
    volume.gain.linearRampToValueAtTime(0.3, beginS + 0.01);
    volume.gain.linearRampToValueAtTime(0, beginS + lengthS);
    tone.connect(volume).connect(context.destination);
    tone.start(beginS);
    tone.stop(beginS + lengthS);
  }
}

/** What is to be heard from now on is that of `state`; `events` led to it. */
export function hearState(state, events, nowMs) {
  sessionId = state.session_id;
  cues = state.status === "running" ? cuesOf(state) : [];
  for (const cue of zerosIn(events)) hear(cue, nowMs);
}

export function hearNothing() {
  cues = [];
}

/** It is `nowMs` by the server's time: what has come since the last call is heard. */
export function hearTime(nowMs) {
  for (const cue of cues) if (cue.atMs > heardUntilMs && cue.atMs <= nowMs) hear(cue, nowMs);
  heardUntilMs = nowMs;
}

/** Of several tabs one is heard. */
function hear({ kind, atMs }, nowMs) {
  if (!isAskedFor() || nowMs - atMs > LATE_MS) return;
  const id = `${sessionId} ${kind} ${atMs}`;
  const say = () => {
    const heard = (remembered(HEARD) ?? "").split("\n");
    if (heard.includes(id)) return;
    remember(HEARD, [id, ...heard].slice(0, REMEMBERED).join("\n"));
    play(CUES[kind]);
  };
  // Tabs are processes, which see what others have remembered a little later. A lock, where there are any (https and
  // localhost), is one tab's alone until the cue is past.
  const begin = () => {
    if (!navigator.locks) return say();
    void navigator.locks.request(`lockstep ${id}`, { ifAvailable: true }, (lock) => {
      if (!lock) return;
      say();
      return new Promise((done) => setTimeout(done, LATE_MS));
    });
  };
  if (document.hasFocus()) begin();
  else setTimeout(begin, document.hidden ? HIDDEN_WAITS_MS : UNFOCUSED_WAITS_MS);
}
