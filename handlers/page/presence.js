/** Who is here, of a session that has presence: in words, and as a dot beside each participant. */

import { nameOf } from "./wording.js";

/** A subject is a participant's id, or whatever else the application calls somebody. */
const isOf = (participant, subject) => participant.participant_id === subject.toLowerCase();

/** "" where nothing is told. */
export function presenceText(state, presence) {
  if (!presence) return "";
  const { present, anonymous, total } = presence;
  if (!present) return `${total} are here`;
  const names = present.map(({ subject }) => {
    const participant = state.participants.find((one) => isOf(one, subject));
    return participant ? nameOf(state, participant) : subject;
  });
  const here = [names.join(", "), anonymous && `${anonymous} anonymous`].filter(Boolean).join(" · ");
  return here ? `Here: ${here}` : "Nobody is here";
}

/** Give what stands for a participant its dot; none where the session has no presence. */
export function markPresence(element, state, participant, presence) {
  if (!state.presence) delete element.dataset.present;
  else element.dataset.present = presence?.present ? presence.present.some(({ subject }) => isOf(participant, subject)) : "unknown";
}
