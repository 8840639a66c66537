/** What the page's address says, and what the opener of the page may do. */

const SCOPES = ["view", "play", "control", "admin"]; // each includes those before it

/** What stands behind the # of the page's address: no request's URL has it. */
const fragment = new URLSearchParams(location.hash.slice(1));

export const sessionId = new URLSearchParams(location.search).get("session");
/** The opener's own token, where the server wants one. */
export const token = fragment.get("token") ?? undefined;
/** Tokens to hand on, that an application or `lockstep links` put into the opener's link: to watch, and by participant. */
export const viewToken = fragment.get("view");
export const playToken = (participantId) => fragment.get(`play.${participantId}`);

const RANK = Object.fromEntries(SCOPES.map((scope, rank) => [scope, rank]));

/**
 * What the page offers. Until the server has said more it is what would do without keys.
 *
 * @type {{hasKeys: boolean, scope: string, subject: string, mayMake: boolean, mayControl: boolean, mayPlay: boolean}}
 */
export let access;

/**
 * @param {{scope?: string, subject?: string}} told by the server: no scope where it has no keys, and lets everybody do
 *   everything. A link may ask for less, by #scope=view or #scope=play&sub=PARTICIPANT, and the page keeps to that
 */
export function learnAccess({ scope, subject }) {
  const rank = Math.min(RANK[scope] ?? RANK.admin, RANK[fragment.get("scope")] ?? RANK.admin);
  access = {
    hasKeys: scope !== undefined,
    scope: SCOPES[rank],
    subject: (subject ?? fragment.get("sub") ?? "").toLowerCase(),
    mayMake: rank >= RANK.admin,
    mayControl: rank >= RANK.control,
    mayPlay: rank === RANK.play,
  };
}

learnAccess({});
