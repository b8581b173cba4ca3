// What is written to the server and has not arrived yet. Each write is kept in the browser until the server has answered
// it, and is sent again, later and later, while the server cannot be reached: a reload or a server that ends loses none.

import { ServerError } from "../server";
import type { MaskBody, StoredMask } from "./engine";

export interface Write {
  /** Sorts as writes were made. */
  readonly id: string;
  readonly task: number;
  readonly key: string;
  /** null deletes the mask. */
  readonly body: MaskBody | null;
  readonly annotator: string;
  /** Of the mask that it replaces, as known when it was written; 0 is none. */
  readonly version: number;
}

export type SaveState =
  | { readonly kind: "saved" }
  | { readonly kind: "saving"; readonly count: number }
  /** It is tried again by itself. */
  | { readonly kind: "waiting"; readonly count: number; readonly why: string; readonly seconds: number }
  /** The server does not take it; the user has to say what now. `theirs`: someone else changed the mask. */
  | { readonly kind: "refused"; readonly count: number; readonly why: string; readonly write: Write; readonly theirs: StoredMask | null };

export interface Shelf {
  readonly length: number;
  key(index: number): string | null;
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
  removeItem(key: string): void;
}

export interface Connection {
  send(write: Write, version: number): Promise<StoredMask | null>;
  later(milliseconds: number, act: () => void): void;
}

const PREFIX = "sam_jax.engine.write.";
const [FIRST_WAIT, LONGEST_WAIT] = [1, 30]; // seconds
const LATER = [0, 408, 429, 500, 502, 503, 504]; // 0: not reached

/** A write that waits for the user, and with it all that follow for its mask. */
interface Refusal {
  readonly why: string;
  readonly write: Write;
  readonly theirs: StoredMask | null;
}

export class Outbox {
  onChange: () => void = () => undefined;
  /** The server has it: `mask` as it is there, null where it was deleted. */
  onSaved: (write: Write, mask: StoredMask | null) => void = () => undefined;
  private writes: Write[];
  private readonly versions = new Map<string, number>();
  private readonly tried = new Set<string>();
  private readonly refusals = new Map<string, Refusal>();
  private waiting: { readonly why: string; readonly seconds: number } | null = null;
  private waiters: { readonly task: number; readonly resolve: () => void }[] = [];
  private waits = 0;
  private running = false;
  private count = 0;
  private unkept = "";

  constructor(
    private readonly shelf: Shelf,
    private readonly connection: Connection,
    private readonly time: () => number = Date.now,
  ) {
    this.writes = readWrites(shelf);
    for (const write of this.writes) this.tried.add(write.id); // perhaps: nobody knows how far they came
  }

  get state(): SaveState {
    const count = this.writes.length;
    if (this.running) return { kind: "saving", count };
    if (this.waiting) return { kind: "waiting", count, ...this.waiting };
    const [refusal] = this.refusals.values();
    return refusal ? { kind: "refused", count, ...refusal } : { kind: "saved" };
  }

  /** Why the browser does not keep what is not saved yet; empty where it does. */
  get warning(): string {
    return this.unkept;
  }

  /** What has not arrived, as far as is known. */
  get pending(): readonly Write[] {
    return this.writes;
  }

  /** Once all that was written for a task has arrived. */
  drained(task: number): Promise<void> {
    return new Promise((resolve) => {
      this.waiters.push({ task, resolve });
      this.tell();
    });
  }

  /** Of writes for one mask that were not sent yet, only the last is. */
  add(write: Omit<Write, "id">): void {
    const former = this.writes.find((other) => other.key === write.key && !this.tried.has(other.id));
    if (former) this.drop(former);
    const isUnknown = write.version === 0 && !this.writes.some((other) => other.key === write.key);
    if (!write.body && isUnknown) return this.tell(); // the server never heard of it
    const id = `${String(this.time()).padStart(15, "0")}.${String(this.count++).padStart(6, "0")}.${write.key}`;
    const kept = { ...write, id };
    this.writes = [...this.writes, kept];
    this.keep(kept);
    this.start();
  }

  /** Sends what is left, at once. */
  start(): void {
    if (!this.running) void this.run();
  }

  /** What was refused is tried again; `version`: over the mask of another, which has it. */
  again({ key }: Write, version?: number): void {
    this.refusals.delete(key);
    if (version !== undefined) this.versions.set(key, version);
    this.start();
  }

  /** What was refused is given up, with what was to follow for its mask. */
  giveUp({ key }: Write): void {
    for (const write of this.writes.filter((other) => other.key === key)) this.drop(write);
    this.refusals.delete(key);
    this.tell();
  }

  private async run(): Promise<void> {
    this.running = true;
    this.waiting = null;
    for (let write = this.following(); write; write = this.following()) {
      this.tell();
      this.tried.add(write.id);
      try {
        await this.deliver(write);
      } catch (error) {
        this.note(write, error);
        if (this.waiting) break;
      }
    }
    this.running = false;
    this.tell();
  }

  private following(): Write | undefined {
    return this.writes.find((write) => !this.refusals.has(write.key));
  }

  private async deliver(write: Write): Promise<void> {
    const version = Math.max(this.versions.get(write.key) ?? 0, write.version);
    const mask = await this.connection.send(write, version);
    this.waits = 0;
    this.versions.set(write.key, mask?.version ?? version + 1); // a deleted mask has a version, too
    this.drop(write);
    this.onSaved(write, mask);
  }

  private note(write: Write, error: unknown): void {
    const why = error instanceof Error ? error.message : String(error);
    const known = error instanceof ServerError ? error : null;
    if (known && LATER.includes(known.status)) {
      const seconds = Math.min(FIRST_WAIT * 2 ** this.waits++, LONGEST_WAIT);
      this.waiting = { why, seconds };
      this.connection.later(1000 * seconds, () => this.start());
      return;
    }
    const theirs = (known?.answer as { mask?: StoredMask } | null | undefined)?.mask ?? null;
    this.refusals.set(write.key, { why, write, theirs });
  }

  private tell(): void {
    const done = this.waiters.filter(({ task }) => !this.writes.some((write) => write.task === task));
    this.waiters = this.waiters.filter((waiter) => !done.includes(waiter));
    for (const { resolve } of done) resolve();
    this.onChange();
  }

  private keep(write: Write): void {
    try {
      this.shelf.setItem(PREFIX + write.id, JSON.stringify(write));
      this.unkept = "";
    } catch {
      this.unkept = "the browser has no room left: what is not saved would be lost with this page";
    }
  }

  private drop(write: Write): void {
    this.writes = this.writes.filter((other) => other !== write);
    this.tried.delete(write.id);
    this.shelf.removeItem(PREFIX + write.id);
  }
}

function readWrites(shelf: Shelf): Write[] {
  const keys = Array.from({ length: shelf.length }, (_, index) => shelf.key(index) ?? "");
  const texts = keys.filter((key) => key.startsWith(PREFIX)).sort().map((key) => shelf.getItem(key));
  return texts.flatMap((text) => (text ? [JSON.parse(text) as Write] : []));
}
