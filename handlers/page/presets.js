/** The start page: presets, one for each mode, and the session that a click on one of them creates. */

import { api, uuid } from "./api.js";
import { $, say, show } from "./dom.js";

const MINUTE_MS = 60_000;

/** A session's body from {name: fields} of each participant. The server has no field for names, so they are in metadata. */
function session(title, fields, people, groups = {}) {
  const names = { ...groups };
  const participants = Object.entries(people).map(([name, own]) => {
    const participant_id = uuid();
    names[participant_id] = name;
    return { participant_id, ...own };
  });
  return { ...fields, participants, metadata: { title, names } };
}

const PRESETS = {
  chess(minutes, seconds) {
    const bank = { total_time_ms: minutes * MINUTE_MS };
    const fields = { sync_mode: "per_participant", increment_ms: seconds * 1000 };
    return session(`Chess ${minutes} + ${seconds}`, fields, { White: bank, Black: bank });
  },
  quiz(_, seconds) {
    const fields = { sync_mode: "per_cycle", time_per_cycle_ms: seconds * 1000 };
    return session("Quiz rounds", fields, { "Team A": {}, "Team B": {}, "Team C": {}, "Team D": {} });
  },
  debate(minutes) {
    const [pro, con] = [uuid(), uuid()];
    const speaker = (group_id) => ({ group_id, total_time_ms: minutes * MINUTE_MS });
    const people = { "Pro 1": speaker(pro), "Con 1": speaker(con), "Pro 2": speaker(pro), "Con 2": speaker(con) };
    return session("Team debate", { sync_mode: "per_group" }, people, { [pro]: "Pro", [con]: "Con" });
  },
  exam: (minutes) => session("Exam", { sync_mode: "global", total_time_ms: minutes * MINUTE_MS }, {}),
  speedrun: () => session("Speedrun", { sync_mode: "count_up" }, { Runner: {} }),
};

export function home() {
  show("home");
  for (const option of document.querySelectorAll("[data-preset]")) {
    option.addEventListener("click", async () => {
      const { preset, minutes, seconds } = option.dataset;
      option.setAttribute("aria-busy", "true");
      try {
        const presence = $("with-presence").checked || undefined;
        const body = { ...PRESETS[preset](Number(minutes), Number(seconds)), presence };
        const created = await api("POST", "v1/sessions", body);
        location.assign(`?session=${created.session_id}${location.hash}`);
      } catch (error) {
        say(error.message);
      }
      option.removeAttribute("aria-busy");
    });
  }
}
