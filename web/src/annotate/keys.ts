// The keys of the page for annotators; those of the list of masks are with the list.

import { find } from "../dom";
import type { Desk } from "./desk";
import type { TaskSession } from "./task_session";

type Action = (() => void) | undefined;

export function listenToKeys(desk: Desk, session: () => TaskSession | null, done: () => void): void {
  addEventListener("keydown", (event) => {
    const now = session();
    if (!now || document.querySelector("dialog[open]")) return;
    const act = inText(event.target) ? ofField(event, desk) : actionOf(event, desk, now, done);
    if (!act) return;
    event.preventDefault();
    act();
  });
}

function inText(target: EventTarget | null): boolean {
  return target instanceof HTMLInputElement && target.type === "text";
}

/** In the field for the name all keys write, but for these. */
function ofField(event: KeyboardEvent, desk: Desk): Action {
  const leave = () => find("stage").focus({ preventScroll: true });
  if (event.key === "Enter") {
    return () => {
      desk.accept();
      leave();
    };
  }
  return event.key === "Escape" ? leave : undefined;
}

function actionOf(event: KeyboardEvent, desk: Desk, session: TaskSession, done: () => void): Action {
  const key = event.key.toLowerCase();
  const control = event.ctrlKey || event.metaKey;
  const arrow = ARROWS[event.key];
  const { editor } = session;
  const inSlider = event.target instanceof HTMLInputElement;
  if (arrow && event.shiftKey) return () => desk.tools.moveCursor(arrow, control);
  if (control) {
    if (key === "z") return () => (event.shiftKey ? editor.redo() : editor.undo());
    return key === "y" ? () => editor.redo() : undefined;
  }
  if (event.altKey) return undefined;
  const onButton = event.target instanceof HTMLButtonElement || inSlider;
  if ((key === "enter" || key === " ") && onButton) return undefined; // they press the button
  if (event.target === desk.stage.canvas) {
    if (key === "arrowup" || key === "arrowdown") return () => desk.tools.step(key === "arrowup" ? 1 : -1);
    if (key === "delete" || key === "backspace") return () => desk.tools.deleteVertex();
    // Held, it lets the mouse move the image; at the keyboard's cursor it uses the tool, once.
    if (key === " ") return () => event.repeat || desk.tools.act(false);
  }
  if (key === "enter") return () => enter(desk, session, event.shiftKey);
  if (/^[1-9]$/.test(key)) return () => editor.choose(Number(key) - 1);
  return letters(desk, done)[key];
}

/** A polygon is applied; otherwise the mask is accepted. */
function enter(desk: Desk, { editor }: TaskSession, cut: boolean): void {
  if (editor.draft.polygon.length > 2) desk.tools.apply(!cut);
  else desk.accept();
}

function letters(desk: Desk, done: () => void): Record<string, Action> {
  const { tools, stage } = desk;
  return {
    a: () => desk.accept(),
    c: () => tools.take("click"),
    b: () => tools.take("brush"),
    e: () => tools.take("eraser"),
    p: () => tools.take("polygon"),
    x: () => tools.act(true),
    r: () => tools.setCorner(),
    "[": () => tools.resize(tools.size - 1),
    "]": () => tools.resize(tools.size + 1),
    m: () => desk.list.focus(),
    n: () => find("name").focus(),
    d: done,
    escape: () => desk.escape(),
    "+": () => stage.zoom(1.3),
    "=": () => stage.zoom(1.3),
    "-": () => stage.zoom(1 / 1.3),
    "0": () => stage.fit(),
    z: () => stage.actualSize(),
    "?": () => desk.showHelp(),
  };
}

const ARROWS: Record<string, readonly [number, number]> = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
};
