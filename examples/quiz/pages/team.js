/** A team's page, on a phone: join, see the question and the clock, answer. */

import { $, ask, attempt, isOver, isTimeUp, oneAtATime, questionOf, showQuestion, showTime } from "./api.js";
import { Lockstep } from "./client/index.js";

const quizId = new URLSearchParams(location.search).get("quiz");
let quiz = await ask("GET", `/${quizId}`);
// A reload is no new team.
const kept = `quiz ${quizId}`;
const team = JSON.parse(localStorage.getItem(kept));

if (team) play(team);
else $("join").hidden = false;

$("join").onsubmit = (event) => {
  event.preventDefault();
  attempt(async () => {
    const { name } = Object.fromEntries(new FormData($("join")));
    const joined = await ask("POST", `/${quizId}/teams`, { name });
    localStorage.setItem(kept, JSON.stringify(joined));
    play(joined);
  });
};

function play({ team: teamId, token }) {
  $("join").hidden = true;
  $("play").hidden = false;
  const lockstep = new Lockstep(quiz.lockstep, { token });
  const session = lockstep.subscribe(quizId);
  showTime(lockstep, session);

  const read = oneAtATime(() =>
    attempt(async () => {
      quiz = await ask("GET", `/${quizId}`);
      draw();
    }),
  );
  session.addEventListener("state", ({ detail: { events, sync } }) => {
    draw();
    // What the back end keeps has changed only where this team was judged, or where it cannot be known.
    if (sync || events.some(({ data }) => data?.team === teamId)) read();
  });

  function draw() {
    const { state } = session;
    const me = quiz.teams.find(({ id }) => id === teamId);
    if (!state || !me) return;
    showQuestion(state, quiz.host);
    const question = questionOf(state, quiz.host);
    const hasAnswered = me.answered.includes(question);
    $("answer").hidden = question === 0 || isOver(state) || hasAnswered || isTimeUp(state) || state.status === "paused";
    $("said").textContent = hasAnswered ? "Your answer is in." : "";
    $("points").textContent = `${me.name}: ${me.points} point${me.points === 1 ? "" : "s"}`;
  }

  $("answer").onsubmit = (event) => {
    event.preventDefault();
    attempt(async () => {
      const { answer } = Object.fromEntries(new FormData($("answer")));
      await ask("POST", `/${quizId}/answers`, { question: questionOf(session.state, quiz.host), answer }, token);
      $("answer").reset();
      await read();
    });
  };
}
