// clients/js, told what to do by lines of JSON, as contract_client.py is; it tells what happens by such lines.

import { createInterface } from "node:readline";

import { Lockstep } from "../../clients/js/src/index.js";

const tell = (what) => console.log(JSON.stringify(what));
let lockstep;

/** What is open in this process besides the lines of JSON. */
function left() {
  const counts = { Timeout: 0, TCPSocketWrap: 0 };
  for (const name of process.getActiveResourcesInfo()) if (name in counts) counts[name] += 1;
  return { timers: counts.Timeout, sockets: counts.TCPSocketWrap };
}

function follow(sessionId) {
  const session = lockstep.subscribe(sessionId);
  session.addEventListener("state", ({ detail: { state, events, sync } }) =>
    tell({ session: sessionId, state, position: session.position, versions: events.map(({ version }) => version), sync }),
  );
  for (const type of ["missing", "deleted"]) {
    session.addEventListener(type, () => tell({ session: sessionId, state: null, position: null, versions: [], sync: true }));
  }
}

const DEEDS = {
  open({ url, sessions }) {
    lockstep = new Lockstep(url);
    for (const each of sessions) follow(each);
    return {};
  },
  probe: () => lockstep.probe(),
  look: () =>
    Object.fromEntries(
      lockstep.subscriptions.map(({ sessionId, isCurrent, status, position, state }) => [
        sessionId,
        { isCurrent: isCurrent || (["missing", "deleted"].includes(status) && lockstep.status === "online"), position, state },
      ]),
    ),
  async command({ session, name, body, key }) {
    const { position, replayed } = await lockstep.subscribe(session).command(name, body, { idempotencyKey: key });
    return { position, replayed: Boolean(replayed) };
  },
  time: () => ({ now: lockstep.time.now(), errorMs: lockstep.time.errorMs }),
  left,
  close: () => lockstep.close(),
};

process.on("unhandledRejection", (error) => tell({ unhandled: String(error) }));
for await (const line of createInterface({ input: process.stdin })) {
  const { id, deed, ...args } = JSON.parse(line);
  Promise.resolve(DEEDS[deed](args)).then(
    (answer) => tell({ id, answer: answer ?? {} }),
    (error) => tell({ id, refused: error.code ?? String(error) }),
  );
}
