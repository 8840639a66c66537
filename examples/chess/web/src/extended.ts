import type { Event, State } from "lockstep-client";

import type { Game, Outcome } from "./api";

/**
 * The game with what an event tells, if that is what comes next.
 *
 * Whoever has a player's token can press around the back end, with any `data`: a press without a move is left to the
 * history, which the back end judges.
 */
export function extended(game: Game, event: Event, state: State): Game {
  if (event.version !== game.version + 1) return game;
  const next = { ...game, version: event.version };
  if (event.type === "switched") {
    const { move, san } = event.data ?? {};
    if (typeof move !== "string" || typeof san !== "string") return game;
    return { ...next, moves: [...game.moves, { move, san }], legal_moves: null };
  }
  if (event.type === "completed") return { ...next, outcome: (event.data as unknown as Outcome | undefined) ?? null };
  if (event.type === "expired") {
    const late = state.participants.find(({ has_expired }) => has_expired)?.participant_id;
    return { ...next, outcome: { result: late === game.players[0] ? "0-1" : "1-0", reason: "time" } };
  }
  return next;
}
