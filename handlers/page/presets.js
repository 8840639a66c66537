/** What the start page makes: the body of a new session, for each kind of clock. */

import { uuid } from "./api.js";

const letterOf = (place) => (place < 26 ? String.fromCharCode(65 + place) : String(place + 1));
export const teamName = (place) => `Team ${letterOf(place)}`;

/** What those are called who have no name of their own; by kind, for the kinds that have participants to name. */
const DEFAULT_NAMES = {
  chess: (place, count) => (count === 2 ? ["White", "Black"][place] : `Player ${place + 1}`),
  quiz: teamName,
  debate: (place) => ["Pro", "Con"][place] ?? teamName(place),
};

/** `count` names, or as many as there are: those given, then the usual ones. */
export function namesFor(kind, count, given = []) {
  const length = Math.max(count, given.length);
  return Array.from({ length }, (_, place) => given[place] ?? DEFAULT_NAMES[kind](place, length));
}

/** A body with `people`, [{name, ...fields}]. The server has no field for names, so they are in metadata. */
function session(title, fields, people, names = {}) {
  const participants = people.map(({ name, ...own }) => {
    const participant_id = uuid();
    names[participant_id] = name;
    return { participant_id, ...own };
  });
  return { ...fields, participants, metadata: { title, names } };
}

/** "Pro: Ann, Ben" is a team with its speakers; without a colon they are called after their team. */
function teamOf(line, speakersEach) {
  const [team, speakers = ""] = line.split(/:(.*)/s).map((part) => part.trim());
  const given = speakers.split(",").map((name) => name.trim()).filter(Boolean);
  const length = given.length || speakersEach;
  return { team, speakers: Array.from({ length }, (_, place) => given[place] ?? `${team} ${place + 1}`) };
}

/** By kind: a body of {title?, timeMs, addedMs, names, speakersEach}, of which each kind takes what it has use for. */
export const BODIES = {
  chess({ title = "Chess", timeMs, addedMs, names }) {
    const people = names.map((name) => ({ name, total_time_ms: timeMs }));
    return session(title, { sync_mode: "per_participant", increment_ms: addedMs }, people);
  },
  quiz({ title = "Quiz rounds", timeMs, names }) {
    return session(title, { sync_mode: "per_cycle", time_per_cycle_ms: timeMs }, names.map((name) => ({ name })));
  },
  /** Each team's first speaker, then each team's second. */
  debate({ title = "Team debate", timeMs, addedMs, names, speakersEach }) {
    const teams = names.map((line) => ({ group_id: uuid(), ...teamOf(line, speakersEach) }));
    const most = Math.max(...teams.map(({ speakers }) => speakers.length));
    const people = Array.from({ length: most }, (_, place) =>
      teams.filter(({ speakers }) => place < speakers.length).map(({ group_id, speakers }) => ({ name: speakers[place], group_id, total_time_ms: timeMs })),
    ).flat();
    const groups = Object.fromEntries(teams.map(({ group_id, team }) => [group_id, team]));
    return session(title, { sync_mode: "per_group", increment_ms: addedMs }, people, groups);
  },
  exam: ({ title = "Exam", timeMs }) => session(title, { sync_mode: "global", total_time_ms: timeMs }, []),
  speedrun: ({ title = "Speedrun" }) => session(title, { sync_mode: "count_up" }, [{ name: "Runner" }]),
};
