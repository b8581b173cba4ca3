// The masks of an image, in the order of their prominence: the most prominent object first.

import { type Rgb, hue } from "../painting";
import type { Mask } from "../masks";
import { type MaskBody, type Segmentation, type StoredMask, maskOfSegmentation } from "./engine";
import type { Write } from "./saving";

export interface Label {
  readonly key: string;
  readonly mask: Mask;
  /** In the store; 0: it is not there yet. */
  readonly version: number;
  readonly state: "proposed" | "accepted";
  readonly author: string | null;
  readonly name: string | null;
  readonly predictedIou: number | null;
  readonly proposal: Segmentation | null;
  readonly prompts: Record<string, unknown> | null;
  readonly corrections: number;
  readonly seconds: number;
  readonly visible: boolean;
  readonly color: Rgb;
}

export class Labels {
  onChange: () => void = () => undefined;
  private all: readonly Label[] = [];
  private colors = 0;

  get list(): readonly Label[] {
    return this.all;
  }

  get proposed(): readonly Label[] {
    return this.all.filter(({ state }) => state === "proposed");
  }

  find(key: string): Label | undefined {
    return this.all.find((label) => label.key === key);
  }

  nextColor(): Rgb {
    return hue(this.colors);
  }

  /** An image's masks from the store, with what is still on its way there; `order`: as far as it was changed here. */
  load(stored: readonly StoredMask[], writes: readonly Write[], order: readonly string[]): void {
    [this.all, this.colors] = [[], 0];
    const ranked = [...stored].sort((a, b) => rank(a.prominence) - rank(b.prominence));
    for (const mask of ranked) if (mask.state !== "deleted") this.insert(labelOf(mask, this.takeColor()));
    for (const { key, body, version } of writes) {
      if (body) this.insert({ ...labelOfBody(body, key, version), color: this.find(key)?.color ?? this.takeColor() });
      else this.all = this.all.filter((label) => label.key !== key);
    }
    const place = new Map(order.map((key, index) => [key, index]));
    const found = this.all.map((label, index) => ({ label, at: place.get(label.key) ?? order.length + index }));
    this.all = found.sort((a, b) => a.at - b.at).map(({ label }) => label);
    this.onChange();
  }

  /** A mask as it is now: in its place, or at the end. */
  set(label: Label): void {
    if (!this.find(label.key)) this.colors++;
    this.insert(label);
    this.onChange();
  }

  /** What the store says of a mask that is here. */
  settle(stored: StoredMask): void {
    const label = this.find(stored.key);
    if (stored.state === "deleted") this.remove(stored.key);
    else this.set({ ...labelOf(stored, label?.color ?? this.nextColor()), prompts: label?.prompts ?? null, visible: label?.visible ?? true });
  }

  remove(key: string): void {
    this.all = this.all.filter((label) => label.key !== key);
    this.onChange();
  }

  toggle(key: string): void {
    this.all = this.all.map((label) => (label.key === key ? { ...label, visible: !label.visible } : label));
    this.onChange();
  }

  /** Moves a mask to a rank, 0 being the first. */
  moveTo(key: string, index: number): void {
    const label = this.find(key);
    if (!label) return;
    const others = this.all.filter((other) => other !== label);
    const at = Math.min(Math.max(index, 0), others.length);
    this.all = [...others.slice(0, at), label, ...others.slice(at)];
    this.onChange();
  }

  private insert(label: Label): void {
    const known = this.all.some(({ key }) => key === label.key);
    this.all = known ? this.all.map((other) => (other.key === label.key ? label : other)) : [...this.all, label];
  }

  private takeColor(): Rgb {
    return hue(this.colors++);
  }
}

function rank(prominence: number | null): number {
  return prominence ?? Number.MAX_SAFE_INTEGER;
}

function labelOf(stored: StoredMask, color: Rgb): Label {
  const { key, version, author, name } = stored;
  const proposed = stored.state === "proposed";
  return {
    key,
    version,
    author,
    name,
    state: proposed ? "proposed" : "accepted",
    mask: maskOfSegmentation(stored.segmentation, stored.predicted_iou),
    predictedIou: stored.predicted_iou,
    // What the model proposed is the first that it offered.
    proposal: proposed ? stored.segmentation : null,
    prompts: null,
    corrections: stored.corrections ?? 0,
    seconds: stored.seconds ?? 0,
    visible: true,
    color,
  };
}

function labelOfBody(body: MaskBody, key: string, version: number): Omit<Label, "color"> {
  const { name, prompts, corrections, seconds, proposal } = body;
  return {
    ...{ key, version, name, prompts, corrections, seconds, proposal },
    state: "accepted",
    author: body.annotator,
    mask: maskOfSegmentation(body.segmentation, body.predicted_iou),
    predictedIou: body.predicted_iou,
    visible: true,
  };
}
