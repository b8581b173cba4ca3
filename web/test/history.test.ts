import assert from "node:assert/strict";
import { test } from "node:test";
import { advance, begin, redo, undo } from "../src/history";

test("undo and redo go along the line", () => {
  const three = advance(advance(begin(1), 2), 3);
  assert.equal(undo(three).now, 2);
  assert.equal(undo(undo(three)).now, 1);
  assert.deepEqual(redo(redo(undo(undo(three)))), three);
});

test("the ends stay", () => {
  const one = begin(1);
  assert.equal(undo(one), one);
  assert.equal(redo(one), one);
});

test("what was undone is forgotten after something new", () => {
  const other = advance(undo(advance(begin(1), 2)), 9);
  assert.deepEqual(other, { past: [1], now: 9, future: [] });
  assert.equal(redo(other), other);
});

test("it remembers no more than it should", () => {
  let line = begin(0);
  for (let at = 1; at <= 500; at++) line = advance(line, at);
  assert.equal(line.past.length, 200);
  assert.equal(undo(line).now, 499);
});
