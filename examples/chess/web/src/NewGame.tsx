import { type FormEvent, useState } from "react";

import { createGame, type Links } from "./api";

const TIMES = [
  [1, 0],
  [3, 2],
  [5, 3],
  [10, 0],
  [15, 10],
] as const;

/** Where a game begins: a time, and then three links. */
export function NewGame() {
  const [chosen, setChosen] = useState(2);
  const [links, setLinks] = useState<Links | null>(null);
  const [trouble, setTrouble] = useState<string | null>(null);

  function onSubmit(event: FormEvent) {
    event.preventDefault();
    const [minutes, incrementS] = TIMES[chosen] ?? TIMES[0];
    setTrouble(null);
    createGame(minutes * 60_000, incrementS * 1_000).then(setLinks, (error: Error) => setTrouble(error.message));
  }

  return (
    <div className="new">
      <h1>Chess</h1>
      {links ? (
        <>
          <p>Each link is a seat: open yours, send the other, and the third to who wants to watch.</p>
          <ShareLink name="White" path={links.white} />
          <ShareLink name="Black" path={links.black} />
          <ShareLink name="Spectators" path={links.spectators} />
        </>
      ) : (
        <form onSubmit={onSubmit}>
          <fieldset className="times">
            <legend>Minutes + seconds for each move</legend>
            {TIMES.map(([minutes, incrementS], place) => (
              <label key={place}>
                <input type="radio" name="time" checked={place === chosen} onChange={() => setChosen(place)} />
                <span>
                  {minutes} + {incrementS}
                </span>
              </label>
            ))}
          </fieldset>
          <button type="submit">New game</button>
          <p role="alert">{trouble}</p>
        </form>
      )}
    </div>
  );
}

function ShareLink({ name, path }: { name: string; path: string }) {
  const [isCopied, setCopied] = useState(false);
  const url = new URL(path, location.href).href;
  return (
    <section className="link" aria-label={name}>
      <a href={url} target="_blank" rel="noreferrer">
        {name}
      </a>
      <button type="button" className="quiet" onClick={() => navigator.clipboard.writeText(url).then(() => setCopied(true))}>
        {isCopied ? "Copied" : "Copy link"}
      </button>
    </section>
  );
}
