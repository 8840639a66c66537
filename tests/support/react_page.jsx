/**
 * What the tests of the hooks mount in a page. `told` has, by name, what each component's hooks returned when it was
 * last committed, and `commits` how often it was; `frames` counts animation frames that were asked for and are due.
 */
import * as React from "react";
import { Profiler, StrictMode, useLayoutEffect } from "react";
import { createRoot, hydrateRoot } from "react-dom/client";

import * as client from "../../clients/js/src/index.js";
import * as hooks from "../../clients/js/src/react.js";

const told = {};
const commits = {};
const frames = { asked: 0, due: 0, most: 0 };

/** What listens to the connection, to the states of sessions, and to whether the document is looked at. */
const listened = [];
const { addEventListener, removeEventListener } = EventTarget.prototype;
EventTarget.prototype.addEventListener = function (type, listener, options) {
  listened.push({ target: this, type, listener, signal: options?.signal });
  return addEventListener.call(this, type, listener, options);
};
EventTarget.prototype.removeEventListener = function (type, listener, options) {
  const index = listened.findIndex((each) => each.target === this && each.type === type && each.listener === listener);
  if (index >= 0) listened.splice(index, 1);
  return removeEventListener.call(this, type, listener, options);
};
const isCounted = ({ target, type }) =>
  target === window.lockstep ||
  (target instanceof client.Subscription && type === "state") ||
  (target === document && type === "visibilitychange");
const listeners = () => listened.filter((each) => !each.signal?.aborted && isCounted(each)).length;

const ask = window.requestAnimationFrame.bind(window);
const cancel = window.cancelAnimationFrame.bind(window);
const due = new Set();

window.requestAnimationFrame = (run) => {
  const id = ask((ms) => {
    due.delete(id);
    frames.due = due.size;
    run(ms);
  });
  due.add(id);
  frames.asked += 1;
  frames.due = due.size;
  frames.most = Math.max(frames.most, due.size);
  return id;
};
window.cancelAnimationFrame = (id) => {
  due.delete(id);
  frames.due = due.size;
  cancel(id);
};

function useTold(name, what) {
  useLayoutEffect(() => {
    (told[name] ??= []).push(what);
  });
}

function Counted({ name, children }) {
  return (
    <Profiler id={name} onRender={() => (commits[name] = (commits[name] ?? 0) + 1)}>
      {children}
    </Profiler>
  );
}

function Face({ name, session, options }) {
  const face = hooks.useClock(session, options);
  useTold(name, face);
  return <output id={name}>{face.text}</output>;
}

export function Clock({ name = "clock", session, options }) {
  return (
    <Counted name={name}>
      <Face {...{ name, session, options }} />
    </Counted>
  );
}

export function Here({ name = "here", session }) {
  const presence = hooks.usePresence(session);
  useTold(name, presence);
  return <output id={name}>{presence?.total}</output>;
}

/** One that follows a session; `clocks` are the options of each, by name. */
export function Session({ name = "session", lockstep, sessionId, clocks = {}, children }) {
  const view = hooks.useSession(lockstep, sessionId);
  useTold(name, { ...view, sessionId });
  return (
    <section id={name}>
      <b>{view.state ? `v${view.state.version}` : view.status}</b>
      {Object.entries(clocks).map(([each, options]) => (
        <Clock key={each} name={each} session={view.session} options={options} />
      ))}
      {children?.(view)}
    </section>
  );
}

const roots = [];

/** A root of its own: `render` an element into it, under StrictMode unless `isStrict` says otherwise, and `unmount`. */
function mount({ isStrict = true } = {}) {
  const host = document.body.appendChild(document.createElement("div"));
  const root = createRoot(host);
  roots.push(root);
  return {
    host,
    render: (element) => root.render(isStrict ? <StrictMode>{element}</StrictMode> : element),
    unmount() {
      root.unmount();
      host.remove();
    },
  };
}

/** Nothing is left of the test before: a connection, and a root to render into. */
function begin() {
  for (const root of roots.splice(0)) root.unmount();
  window.lockstep?.close();
  document.body.replaceChildren();
  for (const list of [sent, received, sockets, listened]) list.length = 0;
  for (const byName of [told, commits]) for (const name of Object.keys(byName)) delete byName[name];
  frames.most = 0;
  window.lockstep = new client.Lockstep(location.origin);
  window.root = mount();
}

async function until(holds) {
  for (const begin = performance.now(); performance.now() - begin < 20_000; ) {
    if (holds()) return;
    await new Promise(ask);
  }
  throw new Error(`never: ${holds} ${JSON.stringify({ told, commits, frames }).slice(0, 4000)}`);
}

/** What `document` says where another tab is in front, or this one again. */
function hide(isHidden) {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => isHidden });
  document.dispatchEvent(new Event("visibilitychange"));
}

/** The page's requests about subscriptions, [type, session id] each. */
const asked = () => sent.filter(({ type }) => /SUBSCRIBE/.test(type)).map(({ type, sessionId }) => [type, sessionId]);

const last = (name) => told[name]?.at(-1);

Object.assign(window, { React, h: React.createElement, hydrateRoot, begin, mount, until, hide, asked, listeners, told, last, commits, frames });
Object.assign(window, { Clock, Here, Session }, client, hooks);
