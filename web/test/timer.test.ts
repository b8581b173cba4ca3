import assert from "node:assert/strict";
import { test } from "node:test";
import { ActiveTimer, clock } from "../src/annotate/timer";

function begun() {
  const time = { now: 5000 };
  const timer = new ActiveTimer(() => time.now, 60);
  return { timer, pass: (seconds: number) => (time.now += 1000 * seconds) };
}

test("time passes, up to a minute without input", () => {
  const { timer, pass } = begun();
  pass(20);
  assert.equal(timer.seconds, 20);
  pass(100);
  assert.equal(timer.seconds, 60);
  timer.touch();
  assert.equal(timer.seconds, 60);
  pass(7);
  assert.equal(timer.seconds, 67);
});

test("a hidden page costs nothing", () => {
  const { timer, pass } = begun();
  pass(10);
  timer.pause();
  pass(30);
  assert.equal(timer.seconds, 10);
  timer.touch();
  timer.resume();
  pass(5);
  assert.equal(timer.seconds, 15);
});

test("a mask goes on from what was spent on it", () => {
  const { timer, pass } = begun();
  pass(10);
  timer.reset(3);
  pass(2);
  assert.equal(timer.seconds, 5);
  assert.equal(clock(125.9), "2:05");
});
