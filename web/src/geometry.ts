// Where the image is on the screen: a pixel (x, y) of it is drawn at (left + x * scale, top + y * scale).

import type { Size } from "./masks";
import type { Box } from "./prompts";

export interface View {
  readonly scale: number;
  readonly left: number;
  readonly top: number;
}

export interface Place {
  readonly x: number;
  readonly y: number;
}

const LARGEST_SCALE = 40;
export const MUCH = 3; // pixels are shown as squares from here on
const FEWEST_PIXELS = 32; // of the image's longest side on the screen

/** The whole image in the middle, as large as fits; what grows much grows by whole numbers, so that pixels stay square. */
export function fit([height, width]: Size, [roomHeight, roomWidth]: Size, margin = 0): View {
  const free = Math.min((roomWidth - 2 * margin) / width, (roomHeight - 2 * margin) / height);
  const scale = Math.max(free >= MUCH ? Math.min(Math.floor(free), LARGEST_SCALE) : free, 1 / Math.max(height, width));
  return centered([height, width], [roomHeight, roomWidth], scale);
}

export function centered([height, width]: Size, [roomHeight, roomWidth]: Size, scale: number): View {
  return { scale, left: Math.round((roomWidth - width * scale) / 2), top: Math.round((roomHeight - height * scale) / 2) };
}

/** Zooms so that what is under `at` stays there. */
export function zoomed(view: View, factor: number, at: Place, size: Size): View {
  const least = Math.min(FEWEST_PIXELS / Math.max(...size), 1);
  const scale = Math.min(Math.max(view.scale * factor, least), LARGEST_SCALE);
  const by = scale / view.scale;
  return { scale, left: at.x - (at.x - view.left) * by, top: at.y - (at.y - view.top) * by };
}

export function panned(view: View, dx: number, dy: number): View {
  return { ...view, left: view.left + dx, top: view.top + dy };
}

export function toImage(view: View, { x, y }: Place): Place {
  return { x: (x - view.left) / view.scale, y: (y - view.top) / view.scale };
}

export function toScreen(view: View, { x, y }: Place): Place {
  return { x: view.left + x * view.scale, y: view.top + y * view.scale };
}

export function isInside({ x, y }: Place, [height, width]: Size): boolean {
  return x >= 0 && y >= 0 && x < width && y < height;
}

/** The nearest place on the image, just inside its last pixel. */
export function clamped({ x, y }: Place, [height, width]: Size): Place {
  return { x: Math.min(Math.max(x, 0), width - 0.001), y: Math.min(Math.max(y, 0), height - 0.001) };
}

/** The box between two corners, cut at the image's edges; null where it has no pixel's width or height. */
export function boxBetween(a: Place, b: Place, [height, width]: Size): Box | null {
  const cut = (value: number, most: number) => Math.min(Math.max(value, 0), most);
  const box = [
    cut(Math.min(a.x, b.x), width),
    cut(Math.min(a.y, b.y), height),
    cut(Math.max(a.x, b.x), width),
    cut(Math.max(a.y, b.y), height),
  ] as const;
  return box[2] - box[0] >= 1 && box[3] - box[1] >= 1 ? box : null;
}
