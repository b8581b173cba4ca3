// Masks as canvases over the image: the object at work, and all others beneath it.

import type { Preview } from "../decoders";
import type { Size } from "../masks";
import { type Part, canvasOf, colored, contextOf, edgeReach, layerOf, tinted } from "../painting";
import type { Label } from "./labels";

const ACCENT = [67, 83, 216] as const;

export class Layers {
  private readonly size: Size;
  private readonly own: HTMLCanvasElement;
  private painted: Uint8Array | null = null;
  private preview: { readonly of: Preview; readonly canvas: HTMLCanvasElement } | null = null;
  private others: { readonly labels: readonly Label[]; readonly canvas: HTMLCanvasElement } | null = null;

  constructor(size: Size) {
    this.size = size;
    this.own = canvasOf(size[1], size[0]);
  }

  /** The object at work. */
  ofWork(bits: Uint8Array): HTMLCanvasElement {
    if (this.painted !== bits) {
      this.painted = bits;
      this.put(bits, [0, 0, this.size[1], this.size[0]]);
    }
    return this.own;
  }

  /** Pixels of the object at work changed in a part of the image: that is painted anew, and outlines beside it. */
  repaint(bits: Uint8Array, [x, y, width, height]: Part): void {
    if (this.painted !== bits) {
      this.ofWork(bits);
      return;
    }
    const reach = edgeReach(this.size);
    const [left, top] = [Math.max(x - reach, 0), Math.max(y - reach, 0)];
    const [right, bottom] = [Math.min(x + width + reach, this.size[1]), Math.min(y + height + reach, this.size[0])];
    if (right > left && bottom > top) this.put(bits, [left, top, right - left, bottom - top]);
  }

  /** What a click would find. */
  ofPreview(preview: Preview): HTMLCanvasElement {
    if (this.preview?.of !== preview) this.preview = { of: preview, canvas: layerOf(tinted(preview.bits, preview.size, ACCENT)) };
    return this.preview.canvas;
  }

  ofLabels(labels: readonly Label[]): HTMLCanvasElement {
    const before = this.others;
    const same = before?.labels.length === labels.length && before.labels.every((label, index) => alike(label, labels[index]));
    if (before && same) return before.canvas;
    const masks = labels.map(({ mask }) => mask);
    const look = (index: number) => ({ color: labels[index].color, hatched: labels[index].state === "proposed" });
    this.others = { labels, canvas: layerOf(colored(masks, this.size, look)) };
    return this.others.canvas;
  }

  private put(bits: Uint8Array, part: Part): void {
    contextOf(this.own).putImageData(tinted(bits, this.size, ACCENT, part), part[0], part[1]);
  }
}

function alike(a: Label, b: Label): boolean {
  return a.mask === b.mask && a.state === b.state && a.color === b.color;
}
