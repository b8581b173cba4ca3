import assert from "node:assert/strict";
import { test } from "node:test";
import type { MaskBody, StoredMask } from "../src/annotate/engine";
import { type Connection, Outbox, type Shelf, type Write } from "../src/annotate/saving";
import { ServerError } from "../src/server";

class Drawer implements Shelf {
  private readonly kept = new Map<string, string>();
  full = false;
  get length() {
    return this.kept.size;
  }
  key(index: number) {
    return [...this.kept.keys()][index] ?? null;
  }
  getItem(key: string) {
    return this.kept.get(key) ?? null;
  }
  setItem(key: string, value: string) {
    if (this.full) throw new Error("QuotaExceededError");
    this.kept.set(key, value);
  }
  removeItem(key: string) {
    this.kept.delete(key);
  }
}

/** Answers as it is told, and counts versions as the server does. */
class Line implements Connection {
  readonly sent: { write: Write; version: number }[] = [];
  readonly errors: (ServerError | null)[] = [];
  readonly waits: { milliseconds: number; act: () => void }[] = [];
  async send(write: Write, version: number): Promise<StoredMask | null> {
    this.sent.push({ write, version });
    const error = this.errors.shift();
    if (error) throw error;
    return write.body && ({ ...write.body, key: write.key, version: version + 1, state: "accepted" } as unknown as StoredMask);
  }
  later(milliseconds: number, act: () => void) {
    this.waits.push({ milliseconds, act });
  }
}

const body = (name: string) => ({ name }) as unknown as MaskBody;
const write = (key: string, name: string, version = 0) => ({ task: 1, key, body: body(name), annotator: "ann", version });
const settled = () => new Promise((resolve) => setTimeout(resolve));
const AWAY = () => new ServerError("the server cannot be reached", 0);

function begun() {
  const [drawer, line] = [new Drawer(), new Line()];
  return { drawer, line, outbox: new Outbox(drawer, line) };
}

test("what is written arrives once, and then is kept no longer", async () => {
  const { drawer, line, outbox } = begun();
  const saved: (StoredMask | null)[] = [];
  outbox.onSaved = (_, mask) => saved.push(mask);
  outbox.add(write("a", "one"));
  assert.deepEqual(outbox.state, { kind: "saving", count: 1 });
  assert.equal(drawer.length, 1);
  await settled();
  assert.deepEqual(outbox.state, { kind: "saved" });
  assert.equal(drawer.length, 0);
  assert.equal(saved[0]?.version, 1);
  outbox.add(write("a", "two"));
  await settled();
  assert.deepEqual(line.sent.map(({ version }) => version), [0, 1]);
});

test("a server that is away is asked again, later and later, and nothing is lost or out of order", async () => {
  const { drawer, line, outbox } = begun();
  line.errors.push(...Array.from({ length: 7 }, AWAY));
  outbox.add(write("a", "one"));
  await settled();
  outbox.add(write("b", "two"));
  await settled();
  for (let index = 0; index < 6; index++) {
    assert.equal(outbox.state.kind, "waiting");
    line.waits[line.waits.length - 1].act();
    await settled();
  }
  assert.deepEqual(outbox.state, { kind: "saved" });
  assert.deepEqual(line.waits.map(({ milliseconds }) => milliseconds / 1000), [1, 2, 4, 8, 16, 30, 30]);
  assert.deepEqual(line.sent.slice(-2).map((one) => one.write.key), ["a", "b"]);
  assert.equal(drawer.length, 0);
});

test("what a page could not send, the next page sends", async () => {
  const { drawer, line, outbox } = begun();
  line.errors.push(AWAY());
  outbox.add(write("a", "one", 3));
  outbox.add({ ...write("b", "", 2), body: null });
  await settled();
  const other = new Line();
  const next = new Outbox(drawer, other);
  assert.deepEqual(next.pending.map(({ key }) => key), ["a", "b"]);
  next.start();
  await settled();
  assert.deepEqual(other.sent.map(({ version }) => version), [3, 2]);
  assert.equal(drawer.length, 0);
});

test("what was not sent yet is sent in its last form; what perhaps arrived, as it was", async () => {
  const { line, outbox } = begun();
  line.errors.push(AWAY());
  outbox.add(write("a", "one"));
  outbox.add(write("b", "two"));
  outbox.add(write("b", "three"));
  await settled();
  outbox.add(write("a", "four"));
  await settled();
  const names = line.sent.map((one) => [one.write.body?.name, one.version]);
  assert.deepEqual(names, [["one", 0], ["one", 0], ["three", 0], ["four", 1]]);
});

test("a conflict waits for the user, and other masks do not", async () => {
  const { line, outbox } = begun();
  const theirs = { key: "a", version: 7, author: "bob" } as StoredMask;
  line.errors.push(new ServerError("changed meanwhile", 409, { mask: theirs }));
  outbox.add(write("a", "one", 5));
  outbox.add(write("b", "two"));
  await settled();
  const state = outbox.state;
  assert.equal(state.kind, "refused");
  if (state.kind !== "refused") return;
  assert.deepEqual([state.theirs, state.why, state.count], [theirs, "changed meanwhile", 1]);
  outbox.again(state.write, theirs.version);
  await settled();
  assert.deepEqual(line.sent.map((one) => [one.write.key, one.version]), [["a", 5], ["b", 0], ["a", 7]]);
  assert.deepEqual(outbox.state, { kind: "saved" });
});

test("what was refused can be given up", async () => {
  const { drawer, line, outbox } = begun();
  line.errors.push(new ServerError("counts do not add up", 422, { error: "" }));
  outbox.add(write("a", "one"));
  await settled();
  outbox.add(write("a", "two"));
  await settled();
  const state = outbox.state;
  if (state.kind !== "refused") throw new Error(state.kind);
  assert.equal(line.sent.length, 1);
  outbox.giveUp(state.write);
  assert.deepEqual([outbox.state.kind, drawer.length], ["saved", 0]);
});

test("a browser without room is told of", async () => {
  const { drawer, line, outbox } = begun();
  drawer.full = true;
  outbox.add(write("a", "one"));
  assert.match(outbox.warning, /no room/);
  await settled();
  assert.equal(line.sent.length, 1);
  drawer.full = false;
  outbox.add(write("b", "two"));
  assert.equal(outbox.warning, "");
});

test("a mask that the server never heard of is deleted here alone", async () => {
  const { drawer, line, outbox } = begun();
  line.errors.push(AWAY());
  outbox.add(write("a", "one"));
  await settled();
  outbox.add(write("b", "two"));
  outbox.add({ ...write("b", ""), body: null });
  assert.equal(drawer.length, 1);
  await settled();
  assert.deepEqual(line.sent.map((one) => one.write.key), ["a", "a"]);
});

test("a deleted mask comes back over its newest version", async () => {
  const { line, outbox } = begun();
  outbox.add({ ...write("a", "", 4), body: null });
  await settled();
  outbox.add(write("a", "again", 4));
  await settled();
  assert.deepEqual(line.sent.map(({ version }) => version), [4, 5]);
});

test("who waits for a task's masks is told when they are there", async () => {
  const { line, outbox } = begun();
  const order: string[] = [];
  line.errors.push(AWAY());
  outbox.add(write("a", "one"));
  void outbox.drained(1).then(() => order.push("one"));
  void outbox.drained(2).then(() => order.push("two"));
  await settled();
  assert.deepEqual(order, ["two"]);
  line.waits[0].act();
  await settled();
  assert.deepEqual(order, ["two", "one"]);
});
