// One image of an annotator: its masks, the object at work, time, and what is written of it. No part of it draws.

import type { OpenedImage } from "../opened_image";
import { begin } from "../history";
import type { Part } from "../painting";
import { beginDraft, countCorrections, isTouched } from "./draft";
import { Editor, type Work } from "./editor";
import { type EngineTask, type MaskBody, type StoredMask, promptsJson, segmentationOf } from "./engine";
import { readPage, removePage, writePage } from "./journal";
import { type Label, Labels } from "./labels";
import type { Outbox, Shelf, Write } from "./saving";
import { ActiveTimer } from "./timer";

export interface Watch {
  onChange(): void;
  onPaint(part: Part): void;
  onError(error: unknown): void;
}

export class TaskSession {
  readonly labels = new Labels();
  readonly editor: Editor;
  /** Of the object at work, and of the image. */
  readonly maskTimer = new ActiveTimer();
  readonly imageTimer = new ActiveTimer();
  private works = new Map<string, Work>();
  private written: unknown[] = [];
  private ended = false;

  constructor(
    readonly task: EngineTask,
    readonly image: OpenedImage,
    readonly annotator: string,
    private readonly outbox: Outbox,
    private readonly shelf: Shelf,
    private readonly watch: Watch,
    /** What was on its way to the store before the task was asked for: the task may not have it. */
    writes: readonly Write[],
  ) {
    const page = readPage(shelf, task.task_id);
    const own = writes.filter((write) => write.task === task.task_id);
    this.labels.load(task.masks, own, page?.order ?? []);
    for (const work of page?.works ?? []) this.works.set(work.key, work);
    const current = page ? this.works.get(page.current) : undefined;
    const work = current ?? newWork();
    this.imageTimer.reset(page?.seconds ?? 0);
    this.maskTimer.reset(work.seconds);
    const changed = () => this.changed();
    this.editor = new Editor(image, work, changed, (part) => watch.onPaint(part), (error) => watch.onError(error));
    this.labels.onChange = changed;
    this.editor.take(work);
  }

  /** The mask that is corrected; undefined: a new one is made. */
  get label(): Label | undefined {
    return this.labels.find(this.editor.key);
  }

  get name(): string {
    return this.editor.now.name;
  }

  set name(name: string) {
    this.editor.now.name = name;
    this.changed();
  }

  /** Whether a mask has changes that nobody accepted yet. */
  isUnaccepted(key: string): boolean {
    return key === this.editor.key ? this.isChanged : this.works.has(key);
  }

  get unaccepted(): number {
    const others = [...this.works.keys()].filter((key) => key !== this.editor.key).length;
    return others + +this.isChanged;
  }

  private get isChanged(): boolean {
    return isTouched(this.editor.draft) || this.name !== (this.label?.name ?? "");
  }

  /** Why the object at work cannot be accepted yet; empty: it can. */
  get obstacle(): string {
    const { editor } = this;
    if (editor.isDrawing) return "the brush is still down";
    if (editor.draft.polygon.length > 0) return "the polygon is not applied yet: add it, cut it out, or clear it";
    if (editor.isWaiting) return "the model is still looking";
    if (editor.bits.includes(1)) return "";
    return this.label ? "the mask is empty: delete it instead" : "there is no mask yet";
  }

  /** Accepts the object at work, and begins a new one. Gives the mask, or nothing where there is an obstacle. */
  accept(): Label | null {
    if (this.obstacle) return null;
    const { label } = this;
    const accepted = label?.state === "accepted" && !this.isChanged ? label : this.finished(label);
    if (accepted !== label) this.write(accepted);
    this.begin(newWork(), false);
    return accepted;
  }

  private finished(label: Label | undefined): Label {
    const { editor, name } = this;
    const { mask, draft, now } = editor;
    const isAsProposed = !isTouched(draft) && label;
    return {
      key: editor.key,
      mask: isAsProposed ? label.mask : mask,
      version: label?.version ?? 0,
      state: "accepted",
      author: this.annotator,
      name: name.trim() || null,
      predictedIou: isAsProposed ? label.predictedIou : editor.predictedIou,
      proposal: label ? label.proposal : now.proposal?.area ? segmentationOf(now.proposal) : null,
      prompts: promptsJson(draft.prompts) ?? label?.prompts ?? null,
      corrections: countCorrections(draft, label?.corrections ?? 0),
      seconds: this.maskTimer.seconds,
      visible: label?.visible ?? true,
      color: label?.color ?? this.labels.nextColor(),
    };
  }

  /** Accepts a proposed mask as it is. */
  acceptProposed(key: string): void {
    const label = this.labels.find(key);
    if (!label || label.state !== "proposed" || this.isUnaccepted(key)) return;
    this.write({ ...label, state: "accepted", author: this.annotator });
    if (key === this.editor.key) this.begin(newWork(), false);
  }

  /** Those that nobody has begun to correct. */
  acceptAllProposed(): number {
    const before = this.labels.proposed;
    for (const { key } of before) this.acceptProposed(key);
    return before.length - this.labels.proposed.length;
  }

  /** Takes a mask to correct; null begins a new one. What was begun on another is kept with it. */
  select(key: string | null): void {
    if (key === this.editor.key) return;
    const label = key === null ? undefined : this.labels.find(key);
    if (label) return this.begin(this.works.get(label.key) ?? workOf(label), true);
    const unfinished = [...this.works.values()].find((work) => !this.labels.find(work.key) && work.key !== this.editor.key);
    this.begin(unfinished ?? newWork(), true);
  }

  remove(key: string): Label | null {
    const label = this.labels.find(key);
    if (!label) return null;
    const isCurrent = key === this.editor.key;
    this.works.delete(key);
    this.labels.remove(key);
    this.outbox.add({ task: this.task.task_id, key, body: null, annotator: this.annotator, version: label.version });
    if (isCurrent) this.begin(newWork(), false);
    return label;
  }

  /** Takes back a deletion. */
  restore(label: Label, index: number): void {
    this.write({ ...label, state: "accepted" });
    this.labels.moveTo(label.key, index);
  }

  /** The mask is in the store. */
  saved({ key, task }: Write, stored: StoredMask | null): void {
    const label = this.labels.find(key);
    if (task === this.task.task_id && stored && label) this.labels.set({ ...label, version: stored.version });
  }

  /** A mask of another stays in the place of what was written here. */
  takeTheirs(theirs: StoredMask): void {
    if (theirs.key === this.editor.key) this.begin(newWork(), false);
    this.works.delete(theirs.key);
    this.labels.settle(theirs);
  }

  /** Input of the user: time is spent. */
  touch(): void {
    this.maskTimer.touch();
    this.imageTimer.touch();
  }

  pause(hidden: boolean): void {
    for (const timer of [this.maskTimer, this.imageTimer]) hidden ? timer.pause() : timer.resume();
    this.remember();
  }

  /** Writes down what a reload must not lose. */
  remember(): void {
    if (this.ended) return;
    this.editor.now.seconds = this.maskTimer.seconds;
    const works = [...new Set([...this.works.values(), this.editor.now])];
    const order = this.labels.list.map(({ key }) => key);
    writePage(this.shelf, this.task.task_id, { current: this.editor.key, works, order, seconds: this.imageTimer.seconds });
  }

  close(ended: boolean): void {
    if (ended) removePage(this.shelf, this.task.task_id);
    else this.remember();
    this.ended = true;
    this.image.close();
  }

  private write(label: Label): void {
    this.labels.set(label);
    const prominence = this.labels.list.findIndex(({ key }) => key === label.key);
    const body: MaskBody = {
      annotator: this.annotator,
      segmentation: segmentationOf(label.mask),
      name: label.name,
      prompts: label.prompts,
      corrections: label.corrections,
      seconds: Math.round(label.seconds * 10) / 10,
      proposal: label.proposal,
      predicted_iou: label.predictedIou,
      prominence,
    };
    const { key, version } = label;
    this.outbox.add({ task: this.task.task_id, key, body, annotator: this.annotator, version });
  }

  /** `keep`: what was begun on the object before stays with it. */
  private begin(work: Work, keep: boolean): void {
    const { now } = this.editor;
    now.seconds = this.maskTimer.seconds;
    if (keep && this.isChanged) this.works.set(now.key, now);
    else this.works.delete(now.key);
    this.maskTimer.reset(work.seconds);
    this.editor.take(work);
  }

  private changed(): void {
    const now = [this.editor.draft, this.editor.key, this.name, this.labels.list];
    if (now.some((value, index) => value !== this.written[index])) {
      this.written = now;
      this.remember();
    }
    this.watch.onChange();
  }
}

function newWork(): Work {
  return { key: newKey(), steps: begin(beginDraft(null)), proposal: null, seconds: 0, name: "" };
}

function workOf({ key, mask, seconds, name }: Label): Work {
  return { key, steps: begin(beginDraft(mask)), proposal: null, seconds, name: name ?? "" };
}

/** A random UUID; `crypto.randomUUID` is for https alone, and servers of a local network have none. */
function newKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
