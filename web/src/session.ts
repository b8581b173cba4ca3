// One image at work: prompts with undo, the masks found for them, everything in the image.

import type { Decoder, Preview } from "./decoders";
import type { Place } from "./geometry";
import * as history from "./history";
import { type Mask, type Size, masksAt } from "./masks";
import type { OpenedImage } from "./opened_image";
import { type Box, type Found, NO_PROMPTS, type Prompts, isEmpty } from "./prompts";
import type { NamedMask, Progress } from "./server";

/** What is selected: by prompts, or picked out of everything. */
interface Step {
  readonly prompts: Prompts;
  readonly picked: Mask | null;
}

const NOTHING: Step = { prompts: NO_PROMPTS, picked: null };

export class Session {
  preview: Preview | null = null;
  everything: readonly Mask[] | null = null;
  /** How many masks each phrase has, where `everything` is what phrases name. */
  named: readonly { readonly phrase: string; readonly count: number }[] | null = null;
  /** The mask under the cursor, of everything. */
  highlighted: Mask | null = null;
  milliseconds: number | null = null;
  private steps = history.begin(NOTHING);
  private readonly found = new WeakMap<Step, Found>();
  private readonly chosen = new WeakMap<Step, number>();
  private hovered: Place | null = null;
  private hovering = false;
  private level = 0;
  private under: readonly Mask[] = [];
  private running: AbortController | null = null;

  constructor(
    readonly image: OpenedImage,
    private readonly onChange: () => void,
    private readonly onError: (error: unknown) => void,
  ) {}

  get name(): string {
    return this.image.name;
  }

  get bitmap(): ImageBitmap {
    return this.image.bitmap;
  }

  get size(): Size {
    return this.image.size;
  }

  get prompts(): Prompts {
    return this.steps.now.prompts;
  }

  get candidates(): Found | null {
    return this.found.get(this.steps.now) ?? null;
  }

  get choice(): number {
    return this.chosen.get(this.steps.now) ?? this.candidates?.best ?? 0;
  }

  get mask(): Mask | null {
    return this.steps.now.picked ?? this.candidates?.masks[this.choice] ?? null;
  }

  get canUndo(): boolean {
    return this.steps.past.length > 0;
  }

  get canRedo(): boolean {
    return this.steps.future.length > 0;
  }

  get decodedBy(): string {
    return this.image.decodedBy;
  }

  get isRunning(): boolean {
    return this.running !== null;
  }

  /** A decoder that is ready only now. */
  async use(decoder: Decoder): Promise<void> {
    await this.image.use(decoder);
    this.onChange();
  }

  close(): void {
    this.cancel();
    this.image.close();
  }

  addPoint({ x, y }: Place, on: boolean): void {
    if (this.everything && on) {
      const mask = this.highlightAt({ x, y });
      if (mask) this.go({ prompts: NO_PROMPTS, picked: mask });
      return;
    }
    const { points, box } = this.prompts;
    if (points.length === 0 && !box && !on) return; // there is nothing to take away from
    this.go({ prompts: { points: [...points, { x, y, on }], box }, picked: null });
  }

  setBox(box: Box): void {
    this.everything = null;
    this.go({ prompts: { points: this.prompts.points, box }, picked: null });
  }

  choose(index: number): void {
    if (!this.candidates || index < 0 || index >= this.candidates.masks.length) return;
    this.chosen.set(this.steps.now, index);
    this.onChange();
  }

  clear(): void {
    if (this.steps.now !== NOTHING) this.go(NOTHING);
  }

  undo(): void {
    this.move(history.undo(this.steps));
  }

  redo(): void {
    this.move(history.redo(this.steps));
  }

  /** Larger (1) or smaller (-1): of everything under the cursor, or of the masks to choose from. */
  stepBySize(direction: 1 | -1): void {
    if (this.everything) {
      this.level = Math.min(Math.max(this.level + direction, 0), Math.max(this.under.length - 1, 0));
      this.highlighted = this.under[this.level] ?? null;
      if (this.steps.now.picked && this.highlighted) this.move({ ...this.steps, now: { ...NOTHING, picked: this.highlighted } });
      else this.onChange();
      return;
    }
    const masks = this.candidates?.masks ?? [];
    const bySize = masks.map((_, index) => index).sort((a, b) => masks[a].area - masks[b].area);
    const next = bySize[bySize.indexOf(this.choice) + direction];
    if (next !== undefined) this.choose(next);
  }

  /** Shows what a click at this place would find; null is no place. */
  hover(place: Place | null): void {
    this.hovered = place;
    if (this.everything) {
      this.highlightAt(place);
      this.onChange();
    } else if (place && this.steps.now === NOTHING) {
      void this.previewHovered();
    } else if (this.preview) {
      this.preview = null;
      this.onChange();
    }
  }

  async findEverything(pointsPerSide: number, onProgress: (progress: Progress) => void): Promise<void> {
    await this.find((signal) => this.image.everything(pointsPerSide, onProgress, signal));
  }

  /** Finds what phrases name; it takes the place of everything. */
  async findNamed(phrases: readonly string[], pointsPerSide: number, onProgress: (progress: Progress) => void): Promise<void> {
    const counted = (masks: readonly NamedMask[]) =>
      phrases.map((phrase) => ({ phrase, count: masks.filter((mask) => mask.text === phrase).length }));
    await this.find((signal) => this.image.named(phrases, pointsPerSide, onProgress, signal), counted);
  }

  private async find<M extends Mask>(
    ask: (signal: AbortSignal) => Promise<readonly M[]>,
    counted: (masks: readonly M[]) => Session["named"] = () => null,
  ): Promise<void> {
    this.cancel();
    const run = (this.running = new AbortController());
    this.onChange();
    try {
      const masks = await ask(run.signal);
      if (this.running !== run) return;
      this.preview = null;
      this.everything = masks;
      this.named = counted(masks);
      if (!isEmpty(this.prompts)) this.go(NOTHING);
    } catch (error) {
      if (!run.signal.aborted) this.onError(error);
    } finally {
      if (this.running === run) this.running = null;
      this.onChange();
    }
  }

  cancel(): void {
    this.running?.abort();
    this.running = null;
    this.onChange();
  }

  hideEverything(): void {
    this.everything = this.highlighted = this.named = null;
    if (this.steps.now.picked) this.go(NOTHING);
    this.onChange();
  }

  private highlightAt(place: Place | null): Mask | null {
    const under = place && this.everything ? masksAt(this.everything, place.x, place.y) : [];
    if (under.length !== this.under.length || under.some((mask, index) => mask !== this.under[index])) this.level = 0;
    this.under = under;
    this.highlighted = under[this.level] ?? null;
    return this.highlighted;
  }

  private go(step: Step): void {
    this.move(history.advance(this.steps, step));
  }

  private move(steps: history.History<Step>): void {
    this.steps = steps;
    this.preview = null;
    if (!isEmpty(this.prompts) && !this.candidates) void this.decode(steps.now);
    this.onChange();
  }

  private async decode(step: Step): Promise<void> {
    try {
      const found = await this.image.decode(step.prompts);
      this.found.set(step, found);
      this.milliseconds = found.milliseconds;
    } catch (error) {
      this.onError(error);
    }
    this.onChange();
  }

  /** One at a time; where the cursor was meanwhile is of no interest. */
  private async previewHovered(): Promise<void> {
    if (this.hovering) return;
    this.hovering = true;
    try {
      for (let place = this.hovered, done = null as Place | null; place && place !== done; place = this.hovered) {
        const preview = await this.image.preview({ points: [{ ...place!, on: true }], box: null });
        done = place;
        if (this.steps.now !== NOTHING || this.everything || !this.hovered) break;
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
