import { type KeyboardEvent, useMemo, useRef, useState } from "react";

import { type Board as Squares, isWhite, nameOf, squareOf, wordsFor } from "./squares";
import { Piece } from "./Piece";

const ARROWS: Record<string, [file: number, rank: number]> = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, 1],
  ArrowDown: [0, -1],
};

interface Props {
  board: Squares;
  /** The side that sits below. */
  isWhiteBelow: boolean;
  /** Whether the one who looks may move now: white's pieces, or black's. */
  mayMove: boolean;
  legalMoves: readonly string[];
  lastMove: string | undefined;
  /** The king that is in check: "K", "k", or "" where none is. */
  checked: string;
  onMove: (move: string) => void;
}

/** Squares as buttons: click, or go by arrow keys and press Enter, on a piece and then on where it goes. */
export function Board({ board, isWhiteBelow, mayMove, legalMoves, lastMove, checked, onMove }: Props) {
  const [chosen, setChosen] = useState<number | null>(null);
  const [promotion, setPromotion] = useState<string | null>(null);
  const [focused, setFocused] = useState(squareOf(isWhiteBelow ? "e2" : "e7"));
  const element = useRef<HTMLDivElement>(null);

  const turn = mayMove ? isWhiteBelow : null;
  const from = mayMove ? chosen : null;
  const targets = useMemo(
    () => new Set(legalMoves.filter((move) => from !== null && move.startsWith(nameOf(from))).map((move) => move.slice(2, 4))),
    [legalMoves, from],
  );
  const isOwn = (square: number) => !!board[square] && isWhite(board[square]) === turn;

  function choose(square: number) {
    if (isOwn(square)) return setChosen(square === from ? null : square);
    if (from === null) return;
    setChosen(null);
    const move = nameOf(from) + nameOf(square);
    const isPromotion = legalMoves.includes(`${move}q`);
    if (isPromotion) setPromotion(move);
    else onMove(move);
  }

  function onKeyDown(event: KeyboardEvent) {
    if (event.key === "Escape") setChosen(null);
    const arrow = ARROWS[event.key];
    if (!arrow) return;
    event.preventDefault();
    const direction = isWhiteBelow ? 1 : -1;
    const file = (focused % 8) + direction * arrow[0];
    const rank = Math.floor(focused / 8) + direction * arrow[1];
    if (file < 0 || file > 7 || rank < 0 || rank > 7) return;
    const next = file + 8 * rank;
    setFocused(next);
    element.current?.querySelector<HTMLElement>(`[data-square=${nameOf(next)}]`)?.focus();
  }

  const squares = Array.from({ length: 64 }, (_, place) => (isWhiteBelow ? place ^ 56 : place ^ 7));
  return (
    <div className="board">
      <div className="squares" role="group" aria-label="Board" ref={element} onKeyDown={onKeyDown}>
        {squares.map((square) => {
          const name = nameOf(square);
          const piece = board[square] ?? "";
          return (
            <button
              key={name}
              type="button"
              data-square={name}
              data-piece={piece}
              aria-label={piece ? `${name}, ${wordsFor(piece)}` : name}
              aria-pressed={square === from}
              tabIndex={square === focused ? 0 : -1}
              className={[
                (square + Math.floor(square / 8)) % 2 ? "light" : "dark",
                lastMove?.slice(0, 4).includes(name) && "last",
                targets.has(name) && "target",
                piece && piece === checked && "check",
                isOwn(square) && "own",
              ]
                .filter(Boolean)
                .join(" ")}
              onClick={() => choose(square)}
              onFocus={() => setFocused(square)}
            >
              {piece && <Piece piece={piece} />}
            </button>
          );
        })}
      </div>
      {mayMove && promotion && (
        <div className="promotion" role="group" aria-label="Promote to">
          {[..."qrbn"].map((kind) => (
            <button
              key={kind}
              type="button"
              autoFocus={kind === "q"}
              aria-label={wordsFor(kind).split(" ")[1]}
              onClick={() => {
                setPromotion(null);
                onMove(promotion + kind);
              }}
              onKeyDown={(event) => event.key === "Escape" && setPromotion(null)}
            >
              <Piece piece={isWhiteBelow ? kind.toUpperCase() : kind} />
            </button>
          ))}
        </div>
      )}
    </div>
  );
}
