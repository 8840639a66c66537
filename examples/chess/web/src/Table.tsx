import type { Lockstep } from "lockstep-client";
import { usePresence, useSession } from "lockstep-client/react";
import { useEffect, useMemo, useRef, useState } from "react";

import { type Claims, type Game, makeMove, resign } from "./api";
import { Board } from "./Board";
import { played, START } from "./squares";
import { Player } from "./Player";
import { useGame } from "./useGame";

interface Props {
  lockstep: Lockstep;
  claims: Claims;
  token: string;
  first: Game;
}

/** A game, for a player or for who watches. */
export function Table({ lockstep, claims, token, first }: Props) {
  const { session, state, status, isCurrent } = useSession(lockstep, claims.sid);
  const presence = usePresence(session);
  const [white, black] = first.players;
  const isOpen = state?.status === "pending" || state?.status === "running";
  const turn = state?.active_participant_id ?? white;
  const mayMove = isOpen && isCurrent && turn === claims.sub;
  const { game, trouble } = useGame(first, token, session, state, mayMove);
  const [refusal, setRefusal] = useState<string | null>(null);

  const moves = useMemo(() => game.moves.map(({ move }) => move), [game.moves]);
  const board = useMemo(() => moves.reduce(played, START), [moves]);
  const isCheck = /[+#]$/.test(game.moves.at(-1)?.san ?? "");
  const isWhiteBelow = claims.sub !== black;
  const isPlayer = claims.sub === white || claims.sub === black;

  const ask = (request: Promise<unknown>) => {
    setRefusal(null);
    request.catch((error: Error) => setRefusal(error.message));
  };
  const player = (id: string) => (
    <Player
      session={session}
      id={id}
      name={`${id === white ? "White" : "Black"}${id === claims.sub ? " (you)" : ""}`}
      isHere={presence?.present?.some(({ subject }) => subject === id) ?? false}
      isActive={isOpen && turn === id}
    />
  );

  return (
    <div className="table" data-current={isCurrent}>
      <h1 className="unseen">Chess</h1>
      <div className="play">
        {player(isWhiteBelow ? black : white)}
        <Board
          board={board}
          isWhiteBelow={isWhiteBelow}
          mayMove={mayMove}
          legalMoves={game.legal_moves ?? []}
          lastMove={moves.at(-1)}
          checked={!isCheck ? "" : moves.length % 2 ? "k" : "K"}
          onMove={(move) => ask(makeMove(claims.sid, token, moves.length, move))}
        />
        {player(isWhiteBelow ? white : black)}
      </div>
      <aside>
        <p role="status">{describe(game, state?.status, turn, isCheck, claims.sub)}</p>
        <p role="alert">{refusal ?? trouble ?? lost(isCurrent, status)}</p>
        <Moves game={game} />
        <footer>
          <span>{presence?.anonymous ? `${presence.anonymous} watching` : ""}</span>
          {isPlayer && isOpen && (
            <button type="button" className="quiet" onClick={() => ask(resign(claims.sid, token))}>
              Resign
            </button>
          )}
          {!isOpen && state && <a href="/">New game</a>}
        </footer>
      </aside>
    </div>
  );
}

/** Why what is shown may not be so. */
function lost(isCurrent: boolean, status: string): string | null {
  if (isCurrent) return null;
  if (status === "missing" || status === "deleted") return "This game is gone: it ended a while ago";
  if (status === "refused") return "This link is refused: it may be too old";
  return "No connection: what you see may be out of date";
}

function describe(game: Game, status: string | undefined, turn: string, isCheck: boolean, me: string | undefined): string {
  const side = turn === game.players[0] ? "White" : "Black";
  if (game.outcome) {
    const { result, reason } = game.outcome;
    const words = result === "1/2-1/2" ? "Draw" : result === "1-0" ? "White wins" : "Black wins";
    return `${result} · ${words}: ${reason}`;
  }
  if (status === undefined) return "…";
  if (status !== "pending" && status !== "running") return "The game has ended";
  const whose = turn === me ? "Your move" : `${side} to move`;
  if (status === "pending") return `${whose}. The clocks start with it`;
  return isCheck ? `${whose}. Check!` : whose;
}

function Moves({ game }: { game: Game }) {
  const list = useRef<HTMLOListElement>(null);
  useEffect(() => void list.current?.scrollTo(0, list.current.scrollHeight), [game.moves.length]);
  const pairs = Array.from({ length: Math.ceil(game.moves.length / 2) }, (_, n) => game.moves.slice(2 * n, 2 * n + 2));
  return (
    <ol className="moves" aria-label="Moves" ref={list} tabIndex={0}>
      {pairs.map((pair, number) => (
        <li key={number}>
          {pair.map(({ san }, ply) => (
            <span key={ply}>{san}</span>
          ))}
        </li>
      ))}
    </ol>
  );
}
