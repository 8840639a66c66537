/** The dialog with links to this clock: for whom, as text, and as a QR code. */

import { playToken, sessionId, token, viewToken } from "./access.js";
import { $, setText } from "./dom.js";
import { qrCode } from "./qr.js";
import { nameOf } from "./wording.js";

const LOOPBACK = /^(localhost|.*\.localhost|127\.[\d.]+|\[::1\])$/;
const QUIET_ZONE = 4; // modules of a QR code

const OWN_TEXT = {
  view: "Whoever opens it can watch.",
  play: "This is your own link. Whoever has it can press for you.",
  control: "Whoever has it can do what you can: start, pause and finish this clock.",
  admin: "This is your own link. Whoever has it can do here what you can, and make and delete clocks.",
};
const NO_KEYS = " This server has no keys: only the page keeps to that.";

let links = [];

const url = (fields) => {
  const end = new URLSearchParams(fields).toString();
  return `${new URL(`?session=${sessionId}`, document.baseURI)}${end && `#${end}`}`;
};

/** What can be handed on: [{label, text, url}]. With keys only what the opener's own link brought along. */
function linksOf(state, access) {
  const isOpen = !access.hasKeys && access.mayControl;
  const own = isOpen
    ? { label: "Everybody", text: "All of them show the same time, and all of them can press.", url: url({}) }
    : { label: access.mayControl ? "A host, as you" : "You, on another screen", text: OWN_TEXT[access.scope], url: location.href };
  const watch = { label: "Somebody who watches", text: OWN_TEXT.view };
  const play = (participant) => ({ label: nameOf(state, participant), text: `For ${nameOf(state, participant)}: to end the own turn.` });
  const players = state.participants.map((participant) => [participant, participant.participant_id]);
  if (isOpen) {
    return [
      own,
      { ...watch, text: watch.text + NO_KEYS, url: url({ scope: "view" }) },
      ...players.map(([participant, id]) => ({ ...play(participant), text: play(participant).text + NO_KEYS, url: url({ scope: "play", sub: id }) })),
    ];
  }
  return [
    ...(viewToken ? [{ ...watch, url: url({ token: viewToken }) }] : []),
    ...players.filter(([, id]) => playToken(id)).map(([participant, id]) => ({ ...play(participant), url: url({ token: playToken(id) }) })),
    own,
  ];
}

/** Whether the server lets those watch who have no token. */
let anybodyMayWatch;

async function addLinkWithoutToken(state, access) {
  anybodyMayWatch ??= fetch(`v1/sessions/${sessionId}`, { method: "HEAD" }).then(({ ok }) => ok, () => false);
  if (!(await anybodyMayWatch)) return;
  links = [{ label: "Somebody who watches", text: OWN_TEXT.view, url: url({}) }, ...linksOf(state, access)];
  drawKinds();
}

export function share(state, access) {
  links = linksOf(state, access);
  drawKinds();
  $("share-loopback").hidden = !LOOPBACK.test(location.hostname);
  $("share-dialog").showModal();
  $("share-url").select();
  if (token && !viewToken && access.scope !== "view") addLinkWithoutToken(state, access);
}

function drawKinds() {
  $("share-kind").replaceChildren(...links.map(({ label }) => new Option(label)));
  $("share-kinds").hidden = links.length < 2;
  drawLink();
}

function drawLink() {
  const { text, url } = links[$("share-kind").selectedIndex];
  setText($("share-text"), text);
  $("share-url").value = url;
  setText($("copy"), "Copy");
  const code = qrCode(url);
  $("share-qr").toggleAttribute("hidden", !code);
  if (code) drawCode(code);
}

function drawCode({ size, modules }) {
  const whole = size + 2 * QUIET_ZONE;
  $("share-qr").setAttribute("viewBox", `0 0 ${whole} ${whole}`);
  let path = "";
  modules.forEach((isDark, at) => {
    if (isDark) path += `M${(at % size) + QUIET_ZONE} ${Math.floor(at / size) + QUIET_ZONE}h1v1h-1z`;
  });
  $("share-qr").firstElementChild.setAttribute("d", path);
}

export function bindShare() {
  $("share-kind").onchange = drawLink;
  $("copy").onclick = copy;
}

async function copy() {
  $("share-url").select();
  try {
    await navigator.clipboard.writeText($("share-url").value);
  } catch {
    document.execCommand("copy"); // the clipboard proper exists on https and localhost only
  }
  setText($("copy"), "Copied");
}
