// What a user says of an object, in pixels of the image; the first pixel's corner is at 0.

import type { Mask, Size } from "./masks";

export interface Point {
  readonly x: number;
  readonly y: number;
  readonly on: boolean;
}

/** x0, y0, x1, y1 */
export type Box = readonly [number, number, number, number];

export interface Prompts {
  readonly points: readonly Point[];
  readonly box: Box | null;
}

/** Masks for prompts, and which of them is the model's own choice. */
export interface Found {
  readonly masks: readonly Mask[];
  readonly best: number;
  readonly milliseconds: number;
}

export const NO_PROMPTS: Prompts = { points: [], box: null };

export function isEmpty(prompts: Prompts): boolean {
  return prompts.points.length === 0 && prompts.box === null;
}

/** One point may mean a part or a whole: then three masks are asked for. */
export function isAmbiguous(prompts: Prompts): boolean {
  return prompts.points.length === 1 && prompts.box === null;
}

/** Which of the decoder's M masks to offer: the first is for clear prompts, the others for ambiguous ones. */
export function offered(prompts: Prompts, ious: ArrayLike<number>): { indices: number[]; best: number } {
  const all = Array.from(ious, (_, index) => index);
  if (!isAmbiguous(prompts) || all.length === 1) return { indices: all, best: 0 };
  const indices = all.slice(1);
  return { indices, best: bestOf(indices.map((index) => ious[index])) };
}

export function bestOf(scores: readonly number[]): number {
  return scores.reduce((best, score, index) => (score > scores[best] ? index : best), 0);
}

/** `point_coords` and `point_labels` of the ONNX decoder, in the model's frame. */
export function decoderPoints(prompts: Prompts, size: Size, inputSize: Size): { coords: Float32Array; labels: Float32Array } {
  const [down, across] = [inputSize[0] / size[0], inputSize[1] / size[1]];
  const coords = prompts.points.flatMap(({ x, y }) => [x * across, y * down]);
  const labels: number[] = prompts.points.map(({ on }) => (on ? 1 : 0));
  if (prompts.box) {
    const [x0, y0, x1, y1] = prompts.box;
    coords.push(x0 * across, y0 * down, x1 * across, y1 * down);
    labels.push(2, 3);
  } else {
    coords.push(0, 0);
    labels.push(-1);
  }
  return { coords: Float32Array.from(coords), labels: Float32Array.from(labels) };
}

/** One of the `objects` that the server takes. */
export function serverObject({ points, box }: Prompts): Record<string, unknown> {
  return {
    ...(points.length ? { point_coords: points.map(({ x, y }) => [x, y]), point_labels: points.map(({ on }) => +on) } : {}),
    ...(box ? { box } : {}),
  };
}
