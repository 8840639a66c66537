/** The back end: games, moves, resigning. A link's token says which game, and who asks. */

export interface Made {
  /** As UCI writes it: e2e4, e7e8q. */
  move: string;
  /** As scoresheets have it: e4, e8=Q+. */
  san: string;
}

export interface Outcome {
  result: "1-0" | "0-1" | "1/2-1/2";
  reason: string;
}

/** A game as far as it is known: up to the `version` of its session. */
export interface Game {
  lockstep_url: string;
  version: number;
  /** Their participant ids, white's first. */
  players: [white: string, black: string];
  moves: Made[];
  /** What the player whose turn it is may do; null where nobody has asked yet. */
  legal_moves: string[] | null;
  outcome: Outcome | null;
}

/** Where each player, and whoever watches, has to go. */
export interface Links {
  white: string;
  black: string;
  spectators: string;
}

/** Says in words what the back end refused to do, or that it does not answer. */
export class ApiError extends Error {}

async function ask<Answer>(path: string, token: string, init: RequestInit = {}): Promise<Answer> {
  const headers = { "Content-Type": "application/json", Authorization: `Bearer ${token}` };
  let answer: Response;
  try {
    answer = await fetch(`/api/games${path}`, { ...init, headers });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new ApiError("The game's server does not answer");
  }
  if (answer.status === 204) return undefined as Answer;
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new ApiError(body.error?.message ?? `The game's server answers ${answer.status}`);
  return body as Answer;
}

const post = (body: object): RequestInit => ({ method: "POST", body: JSON.stringify(body) });

export interface Claims {
  /** The game. */
  sid: string;
  /** A player's participant id; spectators have none. */
  sub?: string;
}

/** What a token says. Whether it is true is for others to check. */
export function claimsOf(token: string): Claims | null {
  try {
    return JSON.parse(atob((token.split(".")[1] ?? "").replaceAll("-", "+").replaceAll("_", "/")));
  } catch {
    return null;
  }
}

export const createGame = (timeMs: number, incrementMs: number) =>
  ask<Links>("", "", post({ time_ms: timeMs, increment_ms: incrementMs }));

export const readGame = (id: string, token: string, signal?: AbortSignal) =>
  ask<Game>(`/${id}`, token, signal ? { signal } : {});

/** Make the game's move number `ply`, counted from 0. Sent again, it is made once. */
export const makeMove = (id: string, token: string, ply: number, move: string) =>
  ask<Made>(`/${id}/moves`, token, post({ ply, move }));

export const resign = (id: string, token: string) => ask<void>(`/${id}/resign`, token, post({}));
