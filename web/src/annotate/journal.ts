// What a reload must not lose and the server does not know: the objects at work, the order of masks, time spent.

import type { Mask } from "../masks";
import { type Segmentation, maskOfSegmentation, segmentationOf } from "./engine";
import { type Draft, isTouched } from "./draft";
import type { Work } from "./editor";
import { begin } from "../history";
import type { Shelf } from "./saving";

export interface Page {
  /** The object that is shown, by key. */
  readonly current: string;
  readonly works: readonly Work[];
  readonly order: readonly string[];
  readonly seconds: number;
}

interface SavedWork {
  readonly key: string;
  readonly draft: Omit<Draft, "base"> & { readonly base: Segmentation | null };
  readonly proposal: Segmentation | null;
  readonly seconds: number;
  readonly name: string;
}

const PREFIX = "sam_jax.engine.task.";

/** Writes it down; where the browser has no room, it is lost with the page. */
export function writePage(shelf: Shelf, task: number, page: Page): void {
  const works = page.works.filter(({ steps }) => isTouched(steps.now)).map(savedWork);
  try {
    shelf.setItem(PREFIX + task, JSON.stringify({ ...page, works }));
  } catch {
    shelf.removeItem(PREFIX + task);
  }
}

export function readPage(shelf: Shelf, task: number): Page | null {
  const text = shelf.getItem(PREFIX + task);
  if (!text) return null;
  const page = JSON.parse(text) as Page & { works: SavedWork[] };
  return { ...page, works: page.works.map(workOf) };
}

/** Of a task that has ended. */
export function removePage(shelf: Shelf, task: number): void {
  shelf.removeItem(PREFIX + task);
}

function savedWork({ key, steps, proposal, seconds, name }: Work): SavedWork {
  return { key, draft: { ...steps.now, base: written(steps.now.base) }, proposal: written(proposal), seconds, name };
}

function workOf({ key, draft, proposal, seconds, name }: SavedWork): Work {
  return { key, steps: begin({ ...draft, base: read(draft.base) }), proposal: read(proposal), seconds, name };
}

function written(mask: Mask | null): Segmentation | null {
  return mask && segmentationOf(mask);
}

function read(segmentation: Segmentation | null): Mask | null {
  return segmentation && maskOfSegmentation(segmentation, null);
}
