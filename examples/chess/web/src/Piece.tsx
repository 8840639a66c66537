const GLYPHS: Record<string, string> = { k: "♚", q: "♛", r: "♜", b: "♝", n: "♞", p: "♟" };

/** U+FE0E asks for the letter: phones would draw a pawn as a picture. */
export const Piece = ({ piece }: { piece: string }) => (
  <span className={`piece ${piece === piece.toLowerCase() ? "black" : "white"}`} aria-hidden="true">
    {GLYPHS[piece.toLowerCase()]}
    {"\ufe0e"}
  </span>
);
