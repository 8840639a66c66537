import type { Subscription } from "lockstep-client";
import { useClock } from "lockstep-client/react";

interface Props {
  session: Subscription | null;
  id: string;
  name: string;
  isHere: boolean;
  isActive: boolean;
}

/** A player: who, whether connected, and the time that is left. */
export function Player({ session, id, name, isHere, isActive }: Props) {
  const clock = useClock(session, { participantId: id, decimals: 1, decimalsBelowMs: 20_000 });
  return (
    <section className="player" data-active={isActive} aria-label={name}>
      <span className="presence" data-here={isHere} role="img" aria-label={isHere ? "here" : "away"} />
      <span className="name">{name}</span>
      <span className="clock" role="timer" data-over={clock.isOver} data-running={clock.isRunning}>
        {clock.text}
      </span>
    </section>
  );
}
