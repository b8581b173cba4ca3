// An object while it is annotated: what the model was asked, what was done by hand. Drafts are values: none is changed.

import type { Place } from "../geometry";
import { type Mask, type Size, bitsOf } from "../masks";
import { type Box, type Found, NO_PROMPTS, type Prompts, isEmpty } from "../prompts";
import { paintStroke } from "./brush";
import { fillPolygon } from "./polygon";

/** What a hand adds to the mask (`on`) or takes from it. */
export type Edit =
  | { readonly kind: "stroke"; readonly points: readonly Place[]; readonly radius: number; readonly on: boolean }
  | { readonly kind: "polygon"; readonly points: readonly Place[]; readonly on: boolean };

export interface Draft {
  /** The mask that is corrected; null for a new one. */
  readonly base: Mask | null;
  /** `on` of a point is whether it shall be in the mask. */
  readonly prompts: Prompts;
  /** With a base: what the prompts find is taken from it, not added to it. */
  readonly cutting: boolean;
  /** Which of the masks that the model offers; null is the model's own choice. */
  readonly choice: number | null;
  /** In order, after what the prompts find. */
  readonly edits: readonly Edit[];
  /** Vertices that are not applied yet. */
  readonly polygon: readonly Place[];
}

export function beginDraft(base: Mask | null): Draft {
  return { base, prompts: NO_PROMPTS, cutting: false, choice: null, edits: [], polygon: [] };
}

/** Whether anything was done since it began. */
export function isTouched({ prompts, edits, polygon }: Draft): boolean {
  return !isEmpty(prompts) || edits.length > 0 || polygon.length > 0;
}

/** A point alone, of a new mask, cannot be one to take away: there is nothing yet. */
export function addPoint(draft: Draft, { x, y }: Place, on: boolean): Draft {
  const first = isEmpty(draft.prompts);
  if (first && !on && !draft.base) return draft;
  const prompts = { ...draft.prompts, points: [...draft.prompts.points, { x, y, on }] };
  return { ...draft, prompts, cutting: first ? !on : draft.cutting, choice: null };
}

export function setBox(draft: Draft, box: Box, on: boolean): Draft {
  const cutting = isEmpty(draft.prompts) ? !on && draft.base !== null : draft.cutting;
  return { ...draft, prompts: { ...draft.prompts, box }, cutting, choice: null };
}

export function addEdit(draft: Draft, edit: Edit): Draft {
  return { ...draft, edits: [...draft.edits, edit] };
}

export function applyPolygon(draft: Draft, on: boolean): Draft {
  const points = draft.polygon;
  return points.length < 3 ? draft : { ...addEdit(draft, { kind: "polygon", points, on }), polygon: [] };
}

/** What the model is asked: of a part that is cut away, the points to take away are those that say where it is. */
export function modelPrompts({ prompts, cutting }: Draft): Prompts {
  if (!cutting) return prompts;
  return { points: prompts.points.map((point) => ({ ...point, on: !point.on })), box: prompts.box };
}

/** How often it was corrected after the model's first mask: prompts after the first, another choice, edits by hand. */
export function countCorrections({ base, prompts, choice, edits }: Draft, before = 0): number {
  const asked = prompts.points.length + +(prompts.box !== null);
  return before + Math.max(asked - +(base === null), 0) + +(choice !== null) + edits.length;
}

/** The model's mask that is taken: null while there is none. */
export function chosen({ choice }: Draft, found: Found | null): Mask | null {
  return found ? (found.masks[choice ?? found.best] ?? null) : null;
}

/** (H, W) bytes of 0 and 1: the mask of a draft, with what the model found for its prompts. */
export function pixelsOf(draft: Draft, size: Size, found: Found | null): Uint8Array {
  const region = chosen(draft, found);
  const bits = draft.base ? bitsOf(draft.base) : region ? bitsOf(region) : new Uint8Array(size[0] * size[1]);
  if (draft.base && region) {
    const value = +!draft.cutting;
    bitsOf(region).forEach((bit, at) => {
      if (bit) bits[at] = value;
    });
  }
  for (const edit of draft.edits) applyEdit(bits, size, edit);
  return bits;
}

export function applyEdit(bits: Uint8Array, size: Size, edit: Edit): void {
  if (edit.kind === "stroke") paintStroke(bits, size, edit.points, edit.radius, edit.on);
  else fillPolygon(bits, size, edit.points, edit.on);
}
