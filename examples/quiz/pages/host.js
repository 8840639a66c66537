/** The host's page: on the hall's wall, or at the host's desk. */

import { $, ask, attempt, isOver, isTimeUp, oneAtATime, questionOf, showQuestion, showTime } from "./api.js";
import { Lockstep } from "./client/index.js";
import { qrCode } from "./qr.js";

const quizId = new URLSearchParams(location.search).get("quiz");
const token = new URLSearchParams(location.hash.slice(1)).get("token");
let quiz = await ask("GET", `/${quizId}`);
const lockstep = new Lockstep(quiz.lockstep, { token });
const session = lockstep.subscribe(quizId);

const join = new URL(`team.html?quiz=${quizId}`, location.href).href;
$("join").href = $("join").textContent = join;
drawQr(qrCode(join));

function drawQr({ size, modules }) {
  const squares = [...modules].map((isDark, at) => (isDark ? `M${at % size} ${Math.floor(at / size)}h1v1h-1z` : ""));
  $("qr").setAttribute("viewBox", `-4 -4 ${size + 8} ${size + 8}`); // four modules of quiet around it
  $("qr").firstElementChild.setAttribute("d", squares.join(""));
}

const readTeams = oneAtATime(() =>
  attempt(async () => {
    quiz = await ask("GET", `/${quizId}`);
    drawTeams();
    await readAnswers();
  }),
);

/** When time is up: until then nobody is to be tempted, not even on the hall's wall. */
async function readAnswers() {
  const { state } = session;
  const isShown = Boolean(state) && state.status !== "pending" && (isTimeUp(state) || isOver(state));
  $("answers-part").hidden = !isShown;
  if (!isShown) return;
  const question = questionOf(state, quiz.host);
  const { answers } = await ask("GET", `/${quizId}/answers/${question}`, undefined, token);
  $("answers").replaceChildren(
    ...answers.map(({ team, name, answer, isRight }) => {
      const right = item("button", isRight ? "Right" : "Right?");
      right.setAttribute("aria-pressed", isRight);
      right.setAttribute("aria-label", `${name} is right`);
      right.onclick = () =>
        attempt(() => ask("POST", `/${quizId}/verdicts`, { team, question, isRight: !isRight }, token));
      return row(item("span", answer), item("span", name, "quiet"), right);
    }),
  );
}

const item = (tag, textContent, className = "") => Object.assign(document.createElement(tag), { textContent, className });

function row(...parts) {
  const element = document.createElement("li");
  element.append(...parts);
  return element;
}

function drawTeams() {
  const { state, presence } = session;
  if (!state) return;
  const here = new Set(presence?.present?.map(({ subject }) => subject));
  const question = questionOf(state, quiz.host);
  const teams = quiz.teams.toSorted((one, other) => other.points - one.points);
  $("teams").replaceChildren(
    ...teams.map(({ id, name, points, answered }) => {
      const isHere = here.has(id);
      const named = item("span", name, isHere ? "here" : "away");
      named.title = isHere ? "connected" : "not connected";
      const has = answered.includes(question) ? "has answered" : "";
      return row(named, item("span", has, "quiet"), item("span", `${points} point${points === 1 ? "" : "s"}`));
    }),
  );
}

session.addEventListener("state", ({ detail: { state } }) => {
  showQuestion(state, quiz.host);
  $("go").textContent = state.status === "pending" ? "Ask the first" : "Ask it";
  $("ask").hidden = isOver(state);
  $("finish").hidden = state.status === "pending";
  $("pause").hidden = !["running", "paused"].includes(state.status);
  $("pause").textContent = state.status === "paused" ? "Go on" : "Pause";
  readTeams();
});
session.addEventListener("presence", drawTeams);
showTime(lockstep, session);

$("ask").onsubmit = async (event) => {
  event.preventDefault();
  $("go").disabled = true;
  await attempt(async () => {
    // Commands of one connection are applied in their order: the question is there when its clock begins.
    const { status } = session.state;
    const commands = [session.command("annotate", { metadata: { question: $("next").value.trim() } })];
    if (status === "paused") commands.push(session.command("resume"));
    if (status === "pending") commands.push(session.command("start", { participant_id: quiz.host }));
    else commands.push(session.command("switch", { next_participant_id: quiz.host }));
    await Promise.all(commands);
    $("next").value = "";
  });
  $("go").disabled = false;
};

$("pause").onclick = () => attempt(() => session.command(session.state.status === "paused" ? "resume" : "pause"));
$("finish").onclick = () => attempt(() => session.command("complete"));
