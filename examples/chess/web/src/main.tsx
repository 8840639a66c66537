import { Lockstep } from "lockstep-client";
import { type ReactNode, StrictMode } from "react";
import { createRoot } from "react-dom/client";

import { type Claims, claimsOf, readGame } from "./api";
import { NewGame } from "./NewGame";
import { Table } from "./Table";

const root = createRoot(document.getElementById("root") as HTMLElement);
const show = (what: ReactNode) => root.render(<StrictMode>{what}</StrictMode>);

/** A link is `/#TOKEN`: what stands behind the # stays in the browser. */
const token = location.hash.slice(1);
addEventListener("hashchange", () => location.reload());

async function open(claims: Claims) {
  const first = await readGame(claims.sid, token);
  const lockstep = new Lockstep(first.lockstep_url, { token });
  show(<Table lockstep={lockstep} claims={claims} token={token} first={first} />);
}

const claims = claimsOf(token);
if (token === "") show(<NewGame />);
else if (claims === null) show(<Failure message="This is not a link to a game" />);
else open(claims).catch((error: Error) => show(<Failure message={error.message} />));

function Failure({ message }: { message: string }) {
  return (
    <div className="new">
      <h1>Chess</h1>
      <p role="alert">{message}</p>
      <a href="/">New game</a>
    </div>
  );
}
