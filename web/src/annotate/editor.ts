// The object at work: its draft with undo, what the model finds for it, its pixels.

import type { Preview } from "../decoders";
import type { Place } from "../geometry";
import * as history from "../history";
import { type Mask, type Size, maskOfBits } from "../masks";
import type { OpenedImage } from "../opened_image";
import type { Part } from "../painting";
import { type Box, type Found, isEmpty } from "../prompts";
import { paintSegment, paintStroke, rounded } from "./brush";
import * as drafts from "./draft";
import type { Draft } from "./draft";

/** One object: a new one, or a mask that is corrected. */
export interface Work {
  /** Of the mask, here and in the store. */
  readonly key: string;
  steps: history.History<Draft>;
  /** The first mask that the model offered for it. */
  proposal: Mask | null;
  /** Spent on it, until it was put aside. */
  seconds: number;
  name: string;
}

export class Editor {
  preview: Preview | null = null;
  milliseconds: number | null = null;
  private readonly found = new WeakMap<object, Found>();
  private result: { readonly draft: Draft; readonly bits: Uint8Array } | null = null;
  private stroke: { bits: Uint8Array; readonly points: Place[]; readonly radius: number; readonly on: boolean } | null = null;
  private hovered: Place | null = null;
  private hovering = false;

  constructor(
    readonly image: OpenedImage,
    private work: Work,
    private readonly onChange: () => void,
    /** Pixels changed in a part of the image, and nothing else did. */
    private readonly onPaint: (part: Part) => void,
    private readonly onError: (error: unknown) => void,
  ) {}

  get size(): Size {
    return this.image.size;
  }

  get key(): string {
    return this.work.key;
  }

  get now(): Work {
    return this.work;
  }

  get draft(): Draft {
    return this.work.steps.now;
  }

  get candidates(): Found | null {
    return this.found.get(this.draft.prompts) ?? null;
  }

  get choice(): number {
    return this.draft.choice ?? this.candidates?.best ?? 0;
  }

  get isWaiting(): boolean {
    return !isEmpty(this.draft.prompts) && !this.candidates;
  }

  get canUndo(): boolean {
    return this.work.steps.past.length > 0;
  }

  get canRedo(): boolean {
    return this.work.steps.future.length > 0;
  }

  /** (H, W) bytes of 0 and 1; not to be changed. */
  get bits(): Uint8Array {
    const { draft } = this;
    if (this.stroke) return this.stroke.bits;
    if (this.result?.draft === draft) return this.result.bits;
    const bits = drafts.pixelsOf(draft, this.size, this.candidates);
    this.result = { draft, bits };
    return bits;
  }

  /** The pixels as a mask; the model's estimate is its own only where it is the model's mask as it came. */
  get mask(): Mask {
    const alone = this.draft.base === null && this.draft.edits.length === 0;
    const own = alone ? drafts.chosen(this.draft, this.candidates) : null;
    return own ?? maskOfBits(this.bits, this.size, 0);
  }

  get predictedIou(): number | null {
    const alone = this.draft.base === null && this.draft.edits.length === 0;
    return alone ? (drafts.chosen(this.draft, this.candidates)?.predictedIou ?? null) : null;
  }

  /** Another object. */
  take(work: Work): void {
    this.stroke = null;
    this.work = work;
    this.preview = null;
    this.settle();
  }

  go(draft: Draft): void {
    if (draft !== this.draft) this.move(history.advance(this.work.steps, draft));
  }

  undo(): void {
    this.move(history.undo(this.work.steps));
  }

  redo(): void {
    this.move(history.redo(this.work.steps));
  }

  addPoint(place: Place, on: boolean): void {
    this.go(drafts.addPoint(this.draft, place, on));
  }

  setBox(box: Box, on: boolean): void {
    this.go(drafts.setBox(this.draft, box, on));
  }

  choose(index: number): void {
    if (!this.candidates || index < 0 || index >= this.candidates.masks.length || index === this.choice) return;
    this.go({ ...this.draft, choice: index === this.candidates.best ? null : index });
  }

  /** Larger (1) or smaller (-1), of the masks to choose from. */
  stepBySize(direction: 1 | -1): void {
    const masks = this.candidates?.masks ?? [];
    const bySize = masks.map((_, index) => index).sort((a, b) => masks[a].area - masks[b].area);
    const next = bySize[bySize.indexOf(this.choice) + direction];
    if (next !== undefined) this.choose(next);
  }

  clear(): void {
    if (drafts.isTouched(this.draft)) this.go(drafts.beginDraft(this.draft.base));
  }

  /** A brush is set down. Its line is drawn as it moves and is one step to undo. */
  beginStroke(place: Place, radius: number, on: boolean): void {
    this.preview = null;
    this.stroke = { bits: this.bits.slice(), points: [], radius, on };
    this.drawTo([place]);
  }

  drawTo(places: readonly Place[]): void {
    const { stroke } = this;
    if (!stroke) return;
    for (const place of places.map(rounded)) {
      const before = stroke.points[stroke.points.length - 1] ?? place;
      if (stroke.points.length > 0 && before.x === place.x && before.y === place.y) continue;
      stroke.points.push(place);
      this.onPaint(paintSegment(stroke.bits, this.size, before, place, stroke.radius, stroke.on));
    }
  }

  get isDrawing(): boolean {
    return this.stroke !== null;
  }

  endStroke(keep = true): void {
    const { stroke, draft } = this;
    if (!stroke) return;
    this.stroke = null;
    if (!keep) return this.onChange();
    const { bits, ...line } = stroke;
    const next = drafts.addEdit(draft, { kind: "stroke", ...line });
    this.result = { draft: next, bits };
    this.go(next);
  }

  /** Shows what a click at this place would find; null is no place. */
  hover(place: Place | null): void {
    this.hovered = place;
    if (place && !drafts.isTouched(this.draft) && !this.draft.base) void this.previewHovered();
    else if (this.preview) {
      this.preview = null;
      this.onChange();
    }
  }

  private move(steps: history.History<Draft>): void {
    this.stroke = null;
    this.work.steps = steps;
    this.preview = null;
    this.settle();
  }

  /** Asks the model where it was not asked yet, and keeps its first answer for the object. */
  private settle(): void {
    if (this.isWaiting) void this.decode(this.work, this.draft);
    if (!drafts.isTouched(this.draft) && !this.draft.base) this.work.proposal = null;
    else if (this.candidates) this.work.proposal ??= this.candidates.masks[this.candidates.best];
    this.onChange();
  }

  private async decode(work: Work, draft: Draft): Promise<void> {
    try {
      const found = await this.image.decode(drafts.modelPrompts(draft));
      this.found.set(draft.prompts, found);
      this.milliseconds = found.milliseconds;
      work.proposal ??= found.masks[found.best];
      this.result = null;
      if (this.stroke) this.repaint(this.stroke);
    } catch (error) {
      this.onError(error);
    }
    this.onChange();
  }

  /** The model answered under a stroke. */
  private repaint(stroke: NonNullable<Editor["stroke"]>): void {
    stroke.bits = drafts.pixelsOf(this.draft, this.size, this.candidates);
    paintStroke(stroke.bits, this.size, stroke.points, stroke.radius, stroke.on);
  }

  /** One at a time; where the cursor was meanwhile is of no interest. */
  private async previewHovered(): Promise<void> {
    if (this.hovering) return;
    this.hovering = true;
    try {
      for (let place = this.hovered, done = null as Place | null; place && place !== done; place = this.hovered) {
        const preview = await this.image.preview({ points: [{ ...place, on: true }], box: null });
        done = place;
        if (drafts.isTouched(this.draft) || this.draft.base || this.stroke || !this.hovered) break;
        this.preview = preview;
        this.milliseconds = preview.milliseconds;
        this.onChange();
      }
    } catch (error) {
      this.onError(error);
    } finally {
      this.hovering = false;
    }
  }
}
