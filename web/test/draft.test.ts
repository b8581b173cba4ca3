import assert from "node:assert/strict";
import { test } from "node:test";
import * as drafts from "../src/annotate/draft";
import { maskOfBits } from "../src/masks";

const SIZE = [2, 4] as const;
const mask = (...bits: number[]) => maskOfBits(Uint8Array.from(bits), SIZE, 0.9);
const LEFT = mask(1, 1, 0, 0, 1, 1, 0, 0);
const MIDDLE = mask(0, 1, 1, 0, 0, 1, 1, 0);
const foundFor = (...masks: ReturnType<typeof mask>[]) => ({ masks, best: 0, milliseconds: 1 });
const POINT = { x: 1.5, y: 0.5 };

test("a new mask is the model's, then what the hand did to it", () => {
  let draft = drafts.addPoint(drafts.beginDraft(null), POINT, true);
  draft = drafts.addEdit(draft, { kind: "stroke", points: [{ x: 3.5, y: 0.5 }], radius: 0.75, on: true });
  assert.deepEqual([...drafts.pixelsOf(draft, SIZE, foundFor(LEFT))], [1, 1, 0, 1, 1, 1, 0, 0]);
  draft = drafts.addPoint(draft, POINT, false);
  assert.deepEqual([...drafts.pixelsOf(draft, SIZE, foundFor(MIDDLE))], [0, 1, 1, 1, 0, 1, 1, 0]);
  assert.equal(drafts.countCorrections(draft), 2);
});

test("of a mask that is corrected, clicks add parts and take parts away", () => {
  const begun = drafts.beginDraft(LEFT);
  const added = drafts.addPoint(begun, POINT, true);
  assert.deepEqual([...drafts.pixelsOf(added, SIZE, foundFor(MIDDLE))], [1, 1, 1, 0, 1, 1, 1, 0]);
  const cut = drafts.addPoint(drafts.addPoint(begun, POINT, false), POINT, true);
  assert.deepEqual([...drafts.pixelsOf(cut, SIZE, foundFor(MIDDLE))], [1, 0, 0, 0, 1, 0, 0, 0]);
  assert.deepEqual(drafts.modelPrompts(cut).points.map(({ on }) => on), [true, false]);
  assert.equal(drafts.countCorrections(cut, 3), 5);
  const box = drafts.setBox(begun, [0, 0, 2, 2], false);
  assert.deepEqual([...drafts.pixelsOf(box, SIZE, foundFor(LEFT))], [0, 0, 0, 0, 0, 0, 0, 0]);
});

test("there is nothing to take away from nothing", () => {
  const begun = drafts.beginDraft(null);
  assert.equal(drafts.addPoint(begun, POINT, false), begun);
  assert.equal(drafts.setBox(begun, [0, 0, 2, 2], false).cutting, false);
  assert.equal(drafts.isTouched(begun), false);
});

test("a polygon is applied as a part or a cut, with three vertices or more", () => {
  const vertices = [{ x: 0, y: 0 }, { x: 4, y: 0 }, { x: 4, y: 1 }, { x: 0, y: 1 }];
  const begun = { ...drafts.beginDraft(LEFT), polygon: vertices };
  assert.equal(drafts.isTouched(begun), true);
  const cut = drafts.applyPolygon(begun, false);
  assert.deepEqual([...drafts.pixelsOf(cut, SIZE, null)], [0, 0, 0, 0, 1, 1, 0, 0]);
  assert.deepEqual([...drafts.pixelsOf(drafts.applyPolygon(begun, true), SIZE, null)], [1, 1, 1, 1, 1, 1, 0, 0]);
  assert.deepEqual(cut.polygon, []);
  assert.equal(drafts.applyPolygon({ ...begun, polygon: vertices.slice(2) }, true).edits.length, 0);
});

test("another of the offered masks is a correction", () => {
  const draft = { ...drafts.addPoint(drafts.beginDraft(null), POINT, true), choice: 1 };
  assert.equal(drafts.chosen(draft, foundFor(LEFT, MIDDLE)), MIDDLE);
  assert.equal(drafts.countCorrections(draft), 1);
  assert.equal(drafts.chosen(draft, null), null);
});
