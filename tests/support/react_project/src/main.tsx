import { StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";
import { Lockstep, LockstepError, type Participant, type Subscription } from "lockstep-client";
import { useClock, usePresence, useSession } from "lockstep-client/react";

const asked = new URLSearchParams(location.search);
const sessionId = asked.get("session");

async function token(): Promise<string> {
  const answer = await fetch(`/token?ttl_s=${asked.get("ttl_s") ?? "600"}`);
  return answer.text();
}

const lockstep = new Lockstep(asked.get("server") ?? "/", { token });

function Clock({ session, participant }: { session: Subscription | null; participant: Participant }) {
  const { text, isRunning, isOver } = useClock(session, {
    participantId: participant.participant_id,
    decimals: 1,
    decimalsBelowMs: 20_000,
  });
  const look = isOver ? "over" : isRunning ? "running" : "waiting";
  return <output data-look={look}>{text}</output>;
}

function Here({ session }: { session: Subscription | null }) {
  const presence = usePresence(session);
  return <p id="here">{presence?.present?.map(({ subject }) => subject).join(" ") ?? ""}</p>;
}

function Game() {
  const { session, state, status, isCurrent, command } = useSession(lockstep, sessionId);
  const [problem, setProblem] = useState("");
  if (!state) return <p id="status">{status}</p>;
  const press = () => {
    const body = { expected_participant_id: state.active_participant_id ?? undefined };
    command("switch", body).catch((error: unknown) => {
      setProblem(error instanceof LockstepError ? error.code : String(error));
    });
  };
  return (
    <section data-current={isCurrent} data-version={state.version}>
      {state.participants.map((participant) => (
        <Clock key={participant.participant_id} session={session} participant={participant} />
      ))}
      <button onClick={press}>End turn</button>
      <Here session={session} />
      <p id="problem">{problem}</p>
    </section>
  );
}

const root = document.getElementById("root");
if (!root) throw new Error("index.html has no root");
createRoot(root).render(
  <StrictMode>
    <Game />
  </StrictMode>,
);
