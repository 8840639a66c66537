/** Panels: a clock each, with the names of those it belongs to. */

import { access } from "./access.js";
import { askForTeam, giveTurn } from "./commands.js";
import { lowMs } from "./cues.js";
import { $, setText } from "./dom.js";
import { leftMs } from "./left.js";
import { activeParticipant, currentLap, formatClock, remainingMs, sessionClock, usedMs } from "./client/index.js";
import { markPresence } from "./presence.js";
import { OVER, hasBanks, nameOf, nextStep, ownParticipant, plural } from "./wording.js";

/** Who shares a panel: nobody if each has a bank, the members of a group if groups have banks, otherwise everybody. */
function circles(state) {
  const key = { per_participant: (participant) => participant.participant_id, per_group: (participant) => participant.group_id };
  const byKey = new Map(hasBanks(state) ? [] : [["all", []]]);
  state.participants.forEach((participant, place) => {
    const id = key[state.sync_mode]?.(participant) ?? "all";
    byKey.set(id, [...(byKey.get(id) ?? []), place]);
  });
  return [...byKey];
}

/** The panels of a session with these participants: where one comes or leaves, they are made anew. */
export const panelsOf = (link) => circles(link.state).map((circle, index) => new Panel(link, circle, index + 1));

const makeChip = (onclick) => Object.assign(document.createElement("button"), { type: "button", className: "chip", onclick });

/** Which round it is: who came late has had fewer turns than the others. */
function round(state) {
  const most = Math.max(...state.participants.map((participant) => participant.cycle_count));
  return activeParticipant(state)?.cycle_count < most ? most : most + 1;
}

class Panel {
  constructor(link, [id, places], number) {
    this.link = link;
    this.id = id;
    this.places = places; // in state.participants
    this.number = number;
    this.element = $("panel").content.firstElementChild.cloneNode(true);
    const part = (name) => this.element.querySelector(name);
    this.press = part(".press");
    this.name = part(".name");
    this.face = part(".face");
    this.note = part(".note");
    this.fill = part(".bar i");
    this.press.onclick = () => this.onPress();
    this.chips = places.length < 2 ? [] : places.map((place) => makeChip(() => this.give(place)));
    // In a quiz a team may come late.
    this.late = link.state.sync_mode === "per_cycle" ? makeChip(() => askForTeam(this.link.state)) : null;
    if (this.late) this.late.textContent = "+ Team";
    for (const chip of [...this.chips, this.late].filter(Boolean)) {
      const item = document.createElement("li");
      item.append(chip);
      part(".members").append(item);
    }
  }

  give(place) {
    giveTurn(this.link.state, this.link.state.participants[place].participant_id);
  }

  onPress() {
    const state = this.link.state;
    if (!hasBanks(state) || this.isTurn(state)) $("primary").click();
    else this.give(this.places[0]);
  }

  isTurn(state) {
    return !hasBanks(state) || this.places.some((place) => state.participants[place].is_active);
  }

  isOut(state) {
    if (hasBanks(state)) return state.participants[this.places[0]].has_expired;
    return state.status === "expired" || Boolean(state.is_flagged ?? activeParticipant(state)?.has_expired);
  }

  /** What the face shows, in ms; null if there is nothing left to show. */
  ms(state, nowMs) {
    if (hasBanks(state)) return remainingMs(state, state.participants[this.places[0]], nowMs);
    const clock = sessionClock(state, nowMs);
    if (clock) return clock.ms;
    if (state.sync_mode !== "count_up") return state.status === "expired" ? 0 : leftMs(state);
    return state.participants.length ? state.participants.reduce((sum, one) => sum + usedMs(state, one, nowMs), 0) : null;
  }

  totalMs(state) {
    if (hasBanks(state)) return state.participants[this.places[0]].budget_ms;
    const limit = { per_cycle: state.time_per_cycle_ms, global: state.total_time_ms, count_up: state.max_time_ms };
    return limit[state.sync_mode] ?? null;
  }

  /** Draw all that changes only with the state. */
  draw(state) {
    const active = activeParticipant(state);
    const own = state.metadata?.names?.[this.id];
    this.name.textContent = {
      per_participant: () => nameOf(state, state.participants[this.places[0]]),
      per_group: () => own ?? `Team ${this.number}`,
    }[state.sync_mode]?.() ?? (active && this.chips.length ? nameOf(state, active) : "");
    this.name.hidden = !this.name.textContent;
    this.chips.forEach((chip, index) => {
      const participant = state.participants[this.places[index]];
      chip.textContent = nameOf(state, participant);
      chip.setAttribute("aria-current", String(participant.is_active));
      const isOut = hasBanks(state) && participant.has_expired;
      chip.disabled = !access.mayControl || !["pending", "running"].includes(state.status) || isOut;
    });
    if (this.late) this.late.hidden = !access.mayControl || Boolean(OVER[state.status]);
    this.drawPress(state);
    this.element.querySelector(".bar").hidden = this.totalMs(state) === null;
  }

  /** Whoever only watches has nothing to press. */
  drawPress(state) {
    this.press.hidden = !access.mayControl && !ownParticipant(state);
    const [word] = nextStep(state);
    const isOver = Boolean(OVER[state.status]);
    const canGive = access.mayControl && !isOver && state.status !== "paused" && !this.isOut(state);
    this.press.disabled = this.isTurn(state) ? !word : !canGive;
    let deed = state.status === "pending" ? "begins" : "gets the turn";
    if (isOver) deed = "over";
    else if (this.isTurn(state)) deed = word ?? "has the turn";
    else if (!access.mayControl) deed = "waits";
    this.press.setAttribute("aria-label", `${this.name.textContent || "Clock"}: ${deed}`);
  }

  drawPresence(state, presence) {
    const mark = (element, place) => markPresence(element, state, state.participants[place], presence);
    if (state.sync_mode === "per_participant") mark(this.name, this.places[0]);
    this.chips.forEach((chip, index) => mark(chip, this.places[index]));
  }

  /** Draw all that changes with time. */
  tick(state, nowMs) {
    const ms = this.ms(state, nowMs);
    const totalMs = this.totalMs(state);
    const isUp = state.sync_mode === "count_up";
    const isLow = ms !== null && !isUp && ms < lowMs(totalMs);
    const decimals = isUp ? 2 : isLow && ms > 0 ? 1 : 0;
    const text = ms === null ? "Done" : formatClock(ms, { decimals, up: isUp });
    this.showFace(text);
    setText(this.note, this.noteText(state, nowMs));
    if (totalMs !== null) this.fill.style.transform = `scaleX(${Math.min(1, (ms ?? 0) / totalMs).toFixed(4)})`;
    const look = this.look(state, isLow);
    if (this.element.dataset.look !== look) this.element.dataset.look = look;
  }

  showFace(text) {
    if (this.shown === text) return;
    this.shown = text;
    const [whole, fraction = ""] = text.split(".");
    setText(this.face.firstElementChild, whole);
    setText(this.face.lastElementChild, fraction && `.${fraction}`);
    // The width in digits: a colon is about half of one, a fraction is set smaller. The minimum keeps 0:20 as large as 0:19.9.
    const width = whole.length - whole.split(":").length * 0.45 + 0.45 + (fraction && 0.55 * (fraction.length + 0.5));
    this.face.style.setProperty("--digits", Math.max(4.4, width).toFixed(2));
  }

  look(state, isLow) {
    if (this.isOut(state)) return "out";
    if (state.status === "pending") return "ready";
    if (!this.isTurn(state) || OVER[state.status]) return "waiting";
    return state.status === "paused" ? "held" : isLow ? "low" : "running";
  }

  noteText(state, nowMs) {
    if (this.isOut(state)) return "Out of time";
    const mine = this.places.map((place) => state.participants[place]);
    const turns = mine.reduce((sum, participant) => sum + participant.cycle_count, 0);
    switch (state.sync_mode) {
      case "per_participant":
      case "per_group":
        return plural(turns, "turn");
      case "per_cycle":
        return OVER[state.status] ? plural(turns, "turn") : `Round ${round(state)}`;
      case "global":
        if (leftMs(state)) return "left";
        return state.deadline_ms ? `until ${new Date(state.deadline_ms).toLocaleTimeString([], { timeStyle: "short" })}` : "";
      default: {
        const lap = currentLap(state, nowMs);
        return lap ? `Lap ${lap.number} · ${formatClock(lap.ms, { decimals: 2, up: true })}` : plural(state.lap_count, "lap");
      }
    }
  }
}
