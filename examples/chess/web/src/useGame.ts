import type { State, StateDetail, Subscription } from "lockstep-client";
import { useEffect, useReducer, useState } from "react";

import { type Game, readGame } from "./api";
import { extended } from "./extended";

const RETRY_MS = 2_000;

/**
 * The game, as it goes on.
 *
 * Each press tells its move to all who follow the session. The history, which the back end reads, tells what no event
 * told: what was missed, and to the player whose turn it is (`mayMove`) what is legal now.
 */
export function useGame(first: Game, token: string, session: Subscription | null, state: State | null, mayMove: boolean) {
  const [game, setGame] = useState(first);
  const [trouble, setTrouble] = useState<string | null>(null);
  const [attempt, tryAgain] = useReducer((count: number) => count + 1, 0);

  useEffect(() => {
    const onState = ({ detail }: CustomEvent<StateDetail>) =>
      setGame((known) => detail.events.reduce((game, event) => extended(game, event, detail.state), known));
    session?.addEventListener("state", onState);
    return () => session?.removeEventListener("state", onState);
  }, [session]);

  const sessionId = state?.session_id;
  const version = state?.version ?? 0;
  const isBehind = game.version < version;
  const isAsked = isBehind || (mayMove && game.legal_moves === null);
  useEffect(() => {
    if (sessionId === undefined || !isAsked) return;
    const asking = new AbortController();
    let timer: number | undefined;
    readGame(sessionId, token, asking.signal).then(
      (read) => {
        setTrouble(null);
        setGame((known) => (read.version >= known.version ? read : known));
      },
      (error: Error) => {
        if (asking.signal.aborted) return;
        setTrouble(error.message);
        timer = setTimeout(tryAgain, RETRY_MS);
      },
    );
    return () => {
      asking.abort();
      clearTimeout(timer);
    };
  }, [sessionId, token, version, isAsked, attempt]);

  return { game, trouble };
}
