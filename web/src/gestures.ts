// Mouse, pen, fingers and wheel on the canvas, as what they mean.

import { type Place, boxBetween, clamped, isInside } from "./geometry";
import type { Size } from "./masks";
import type { Box } from "./prompts";
import type { Stage } from "./stage";

export interface Intents {
  size(): Size | null;
  hover(place: Place | null): void;
  click(place: Place, remove: boolean): void;
  /** A box while it is drawn; null where it is none (any more). */
  drawing(box: Box | null): void;
  box(box: Box): void;
  step(direction: 1 | -1): void;
  /** Something that a press at a place takes hold of, on the image or beside it: then it is neither click nor box. */
  grab?(place: Place, remove: boolean): Grab | null;
}

export interface Grab {
  move(places: readonly Place[]): void;
  /** Let go; `keep`: not cancelled. */
  end(keep: boolean): void;
}

const DRAG_PIXELS = 5;
const WHEEL_STEP = 60; // as far as a wheel's notch, or a little more of a touchpad
const ZOOM_PER_PIXEL = 1.004;

type Pointer = { clientX: number; clientY: number };

export function listen(stage: Stage, intents: Intents): void {
  const { canvas } = stage;
  const pointers = new Map<number, Pointer>();
  let [drag, panning, space, wheeled] = [null as { from: Place; start: Pointer; moved: boolean } | null, false, false, 0];
  let grab: Grab | null = null;

  const onImage = (event: Pointer): Place | null => {
    const [place, size] = [stage.place(event), intents.size()];
    return size && isInside(place, size) ? place : null;
  };
  const boxTo = (event: Pointer): Box | null => {
    const size = intents.size();
    return drag && size ? boxBetween(drag.from, stage.place(event), size) : null;
  };
  const stop = () => {
    grab?.end(false);
    grab = drag = null;
    panning = false;
    intents.drawing(null);
  };

  canvas.addEventListener("pointerdown", (event) => {
    const size = intents.size();
    if (!size) return;
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, event);
    if (pointers.size > 1) return stop();
    panning = event.button === 1 || (event.button === 0 && space);
    if (panning || event.button > 0) event.preventDefault();
    if (panning || event.button !== 0) return;
    grab = intents.grab?.(stage.place(event), event.shiftKey) ?? null;
    if (!grab) drag = { from: clamped(stage.place(event), size), start: event, moved: false };
  });

  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (pointers.size === 2 && before) pinch(stage, pointers, event.pointerId, event);
    else if (panning && before) stage.pan(event.clientX - before.clientX, event.clientY - before.clientY);
    else if (grab) grab.move(placesOf(stage, event));
    else if (drag) {
      drag.moved ||= Math.hypot(event.clientX - drag.start.clientX, event.clientY - drag.start.clientY) > DRAG_PIXELS;
      if (drag.moved) intents.drawing(boxTo(event));
    } else if (event.pointerType !== "touch") intents.hover(onImage(event));
    if (before) pointers.set(event.pointerId, event);
  });

  canvas.addEventListener("pointerup", (event) => {
    const [box, place] = [drag?.moved ? boxTo(event) : null, onImage(event)];
    if (drag?.moved && box) intents.box(box);
    else if (drag && !drag.moved && place) intents.click(place, event.shiftKey);
    pointers.delete(event.pointerId);
    grab?.end(true);
    grab = null;
    stop();
  });
  canvas.addEventListener("pointercancel", (event) => {
    pointers.delete(event.pointerId);
    stop();
  });
  canvas.addEventListener("pointerleave", () => intents.hover(null));

  canvas.addEventListener("contextmenu", (event) => {
    event.preventDefault();
    const place = onImage(event);
    if (place && pointers.size <= 1 && event.button === 2) intents.click(place, true);
  });

  canvas.addEventListener(
    "wheel",
    (event) => {
      if (!intents.size()) return;
      event.preventDefault();
      if (event.ctrlKey || event.metaKey) return stage.zoom(ZOOM_PER_PIXEL ** -event.deltaY, stage.local(event));
      wheeled += event.deltaY;
      if (Math.abs(wheeled) < WHEEL_STEP) return;
      intents.step(wheeled < 0 ? 1 : -1);
      wheeled = 0;
    },
    { passive: false },
  );

  canvas.addEventListener("keydown", (event) => {
    if (event.code === "Space") space = true;
  });
  addEventListener("keyup", (event) => {
    if (event.code === "Space") space = false;
  });
}

/** Where a pointer was since the last frame: more than one place, where it is quick. */
function placesOf(stage: Stage, event: PointerEvent): Place[] {
  const all = event.getCoalescedEvents?.() ?? [];
  return (all.length > 0 ? all : [event]).map((one) => stage.place(one));
}

/** Two fingers: what is between them stays between them. */
function pinch(stage: Stage, pointers: Map<number, Pointer>, id: number, now: Pointer): void {
  const before = pointers.get(id);
  const other = [...pointers].find(([key]) => key !== id)?.[1];
  if (!before || !other) return;
  const apart = (one: Pointer) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) || 1;
  const middle = { clientX: (now.clientX + other.clientX) / 2, clientY: (now.clientY + other.clientY) / 2 };
  stage.pan((now.clientX - before.clientX) / 2, (now.clientY - before.clientY) / 2);
  stage.zoom(apart(now) / apart(before), stage.local(middle));
}
