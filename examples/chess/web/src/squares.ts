/** What stands where. Which moves are legal is for the back end to know. */

/** 64 squares, a1 first: white's pieces in capitals, "" where nothing stands. */
export type Board = readonly string[];

const FILES = "abcdefgh";
const NAMES: Record<string, string> = { k: "king", q: "queen", r: "rook", b: "bishop", n: "knight", p: "pawn" };

export const START: Board = [..."RNBQKBNR", ..."PPPPPPPP", ...Array<string>(32).fill(""), ..."pppppppp", ..."rnbqkbnr"];

export const nameOf = (square: number) => `${FILES[square % 8]}${Math.floor(square / 8) + 1}`;
export const squareOf = (name: string) => FILES.indexOf(name[0] ?? "") + 8 * (Number(name[1]) - 1);
export const isWhite = (piece: string) => piece !== piece.toLowerCase();
export const wordsFor = (piece: string) => `${isWhite(piece) ? "white" : "black"} ${NAMES[piece.toLowerCase()]}`;

/** The board after a move that is legal, written as UCI does. */
export function played(board: Board, move: string): Board {
  const after = [...board];
  const [from, to] = [squareOf(move), squareOf(move.slice(2))];
  const piece = board[from] ?? "";
  const kind = piece.toLowerCase();
  after[from] = "";
  after[to] = move[4] ? (isWhite(piece) ? move[4].toUpperCase() : move[4]) : piece;
  // A pawn that moves to the side takes; where nothing stands there, it takes in passing.
  if (kind === "p" && from % 8 !== to % 8 && !board[to]) after[from - (from % 8) + (to % 8)] = "";
  if (kind === "k" && Math.abs(to - from) === 2) {
    const [corner, beside] = to > from ? [to + 1, to - 1] : [to - 2, to + 1];
    after[beside] = board[corner] ?? "";
    after[corner] = "";
  }
  return after;
}
