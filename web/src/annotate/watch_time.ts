// Shows the time on a mask, and says when it has been long: rough masks of many objects are worth more than one fine mask.

import { find, toggle } from "../dom";
import { say } from "../frame";
import type { TaskSession } from "./task_session";
import { clock } from "./timer";

const NUDGE_SECONDS = 8;
const TICK = 500; // milliseconds

/** Follows input, and whether the page is seen. `hintSeconds` may be set. */
export function watchTime(session: () => TaskSession | null): { hintSeconds: number } {
  const wanted = { hintSeconds: 30 };
  let told = "";
  for (const kind of ["pointerdown", "pointermove", "keydown", "wheel"]) {
    addEventListener(kind, () => session()?.touch(), { passive: true, capture: true });
  }
  document.addEventListener("visibilitychange", () => session()?.pause(document.hidden));
  addEventListener("pagehide", () => session()?.remember());

  setInterval(() => {
    const now = session();
    const seconds = now?.maskTimer.seconds ?? 0;
    const over = seconds - wanted.hintSeconds;
    find("clock").textContent = clock(seconds);
    find("clock").classList.toggle("long", over >= 0);
    const nudge = find("nudge");
    toggle("nudge", now !== null && over >= 0 && over < NUDGE_SECONDS);
    if (!now || over < 0 || told === now.editor.key) return;
    told = now.editor.key;
    nudge.textContent = `${wanted.hintSeconds} seconds on this mask. A rough one will do: accept it and move on.`;
    say(nudge.textContent);
  }, TICK);
  return wanted;
}
