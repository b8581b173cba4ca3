import assert from "node:assert/strict";
import { test } from "node:test";
import { EventParser } from "../src/events";

const STREAM = ': begun\n\nevent: progress\ndata: {"done": 1}\n\nevent: masks\ndata: [1,\ndata: 2]\n\n';
const EVENTS = [
  { name: "progress", data: '{"done": 1}' },
  { name: "masks", data: "[1,\n2]" },
];

test("events are whole, however the text is cut", () => {
  for (let size = 1; size <= STREAM.length; size++) {
    const parser = new EventParser();
    const found = [];
    for (let at = 0; at < STREAM.length; at += size) found.push(...parser.push(STREAM.slice(at, at + size)));
    assert.deepEqual(found, EVENTS);
  }
});
