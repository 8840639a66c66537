/** The list of laps. */

import { $ } from "./dom.js";
import { formatClock } from "./client/index.js";
import { History } from "./history.js";

const history = new History((events, state) => {
  const laps = events.map((event) => event.lap_ms).filter(Number.isInteger);
  const earlier = Math.max(0, state.lap_count - laps.length); // older than what is kept
  const bestMs = Math.min(...laps);
  const rows = laps.map((ms, index) => {
    const row = document.createElement("li");
    const cells = [`Lap ${earlier + index + 1}`, ms === bestMs && laps.length > 1 ? "fastest" : "", formatClock(ms, { decimals: 2, up: true })];
    row.append(...cells.map((text) => Object.assign(document.createElement("span"), { textContent: text })));
    return row;
  });
  $("laps").replaceChildren(...rows.reverse());
});

export function drawLaps(state) {
  const isShown = state.sync_mode === "count_up" && state.lap_count > 0;
  $("laps").hidden = !isShown;
  if (isShown) history.show(`${state.epoch} ${state.lap_count}`, state);
  else history.forget();
}

export const forgetLaps = () => history.forget();
