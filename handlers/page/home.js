/** The start page: a click on a preset, or the form beneath them, creates a session. */

import { access, learnAccess, token } from "./access.js";
import { kindly, rest } from "./api.js";
import { Lockstep } from "./client/index.js";
import { $, say, setText, show } from "./dom.js";
import { BODIES, namesFor } from "./presets.js";

const SECOND_MS = 1000;
const MINUTE_MS = 60_000;

// What the buttons leave open.
const PRESETS = {
  chess: ({ minutes, seconds }) => ({
    title: `Chess ${minutes} + ${seconds}`,
    timeMs: minutes * MINUTE_MS,
    addedMs: seconds * SECOND_MS,
    names: namesFor("chess", 2),
  }),
  quiz: ({ seconds }) => ({ timeMs: seconds * SECOND_MS, names: namesFor("quiz", 4) }),
  debate: ({ minutes }) => ({ timeMs: minutes * MINUTE_MS, names: namesFor("debate", 2), speakersEach: 2 }),
  exam: ({ minutes }) => ({ timeMs: minutes * MINUTE_MS }),
  speedrun: () => ({}),
};

// The form, by kind: what its fields are called and begin with. A field that is not named here is not shown.
const FORMS = {
  chess: { time: "Time each", timeMs: 10 * MINUTE_MS, added: "Seconds added per move", count: "Players", begin: 2 },
  quiz: { time: "Time per answer", timeMs: 30 * SECOND_MS, count: "Teams", begin: 4 },
  debate: { time: "Time per team", timeMs: 10 * MINUTE_MS, added: "Seconds added per speech", count: "Teams", begin: 2, speakers: "Speakers per team" },
  exam: { time: "Length", timeMs: 60 * MINUTE_MS },
  speedrun: {},
};

export function home() {
  show("home");
  for (const option of document.querySelectorAll("[data-preset]")) {
    const { preset, minutes, seconds } = option.dataset;
    option.addEventListener("click", () => create(option, BODIES[preset](PRESETS[preset]({ minutes, seconds }))));
  }
  $("own-kind").addEventListener("change", drawForm);
  $("own-names").addEventListener("input", countNames);
  $("own").addEventListener("input", () => $("own-minutes").setCustomValidity(""));
  $("own").addEventListener("submit", (event) => {
    event.preventDefault();
    const choices = chosen();
    if (choices) create($("own-create"), BODIES[$("own-kind").value](choices));
  });
  drawForm();
  learnWhetherAllowed();
}

/** The server knows: it is asked once. */
function learnWhetherAllowed() {
  let lockstep;
  try {
    lockstep = new Lockstep(".", { token });
  } catch {
    return forbid("This link is not complete. Ask for it again.");
  }
  lockstep.addEventListener("status", ({ detail: { status } }) => {
    if (status === "refused") return forbid(token ? "Your link no longer lets you in. Ask for a new one." : "Clocks are made here by those only whose link has a token for it.");
    if (status !== "online") return;
    learnAccess(lockstep.access);
    lockstep.close();
    if (!access.mayMake) forbid("Your link does not let you make clocks.");
  });
  lockstep.connect();
}

function forbid(why) {
  setText($("no-making"), why);
  $("no-making").hidden = false;
  for (const button of $("home").querySelectorAll("button")) button.disabled = true;
}

async function create(button, body) {
  button.setAttribute("aria-busy", "true");
  try {
    const presence = $("with-presence").checked || undefined;
    const created = await rest.create({ ...body, presence });
    location.assign(`?session=${created.session_id}${location.hash}`);
  } catch (error) {
    say(kindly(error));
  }
  button.removeAttribute("aria-busy");
}

function drawForm() {
  const form = FORMS[$("own-kind").value];
  $("own-time").hidden = form.time === undefined;
  setText($("own-time-label"), form.time ?? "");
  const timeMs = form.timeMs ?? 0;
  $("own-minutes").value = Math.floor(timeMs / MINUTE_MS);
  $("own-seconds").value = (timeMs % MINUTE_MS) / SECOND_MS;
  for (const field of ["added", "count", "speakers"]) {
    $(`own-${field}`).closest("label").hidden = form[field] === undefined;
    setText($(`own-${field}-label`), form[field] ?? "");
  }
  $("own-count").value = form.begin ?? 1;
  $("own-people").hidden = form.count === undefined;
  drawHint();
}

function drawHint() {
  const kind = $("own-kind").value;
  if (!FORMS[kind].count) return;
  const [first, second] = namesFor(kind, Number($("own-count").value));
  const speakers = kind === "debate" ? ` A team's speakers stand behind a colon: ${first}: Ann, Ben.` : "";
  setText($("own-names-hint"), `Without a name here: ${[first, second].filter(Boolean).join(", ")} …${speakers}`);
}

const givenNames = () => $("own-names").value.split("\n").map((name) => name.trim()).filter(Boolean);

/** More names are more teams. */
function countNames() {
  $("own-count").value = Math.max(Number($("own-count").value), givenNames().length);
  drawHint();
}

/** What the form says, or null where it says what no clock can be; the browser has pointed at it then. */
function chosen() {
  const kind = $("own-kind").value;
  const number = (field) => Number($(`own-${field}`).value);
  const timeMs = number("minutes") * MINUTE_MS + number("seconds") * SECOND_MS;
  if (FORMS[kind].time && timeMs < SECOND_MS) {
    $("own-minutes").setCustomValidity("A clock begins with a second or more.");
    $("own-minutes").reportValidity();
    return null;
  }
  return {
    title: $("own-title").value.trim() || undefined,
    timeMs,
    addedMs: number("added") * SECOND_MS,
    names: FORMS[kind].count ? namesFor(kind, number("count"), givenNames()) : [],
    speakersEach: number("speakers"),
  };
}
