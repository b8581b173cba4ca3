import assert from "node:assert/strict";
import { test } from "node:test";
import { enlarged, enlargedBits, frameSize, halfToFloat, inputFrame } from "../src/resampling";

// A (5, 7, 3) image of noise.
const NOISE = [
  [[95, 130, 194], [217, 207, 235], [15, 163, 33], [215, 217, 130], [248, 189, 16], [69, 184, 232], [205, 78, 169]],
  [[61, 125, 10], [29, 240, 66], [19, 182, 39], [59, 4, 59], [81, 222, 44], [120, 122, 50], [208, 78, 28]],
  [[64, 166, 121], [89, 170, 233], [127, 178, 237], [128, 113, 123], [76, 155, 69], [154, 130, 248], [95, 73, 192]],
  [[186, 191, 127], [220, 161, 231], [1, 43, 139], [237, 191, 86], [143, 7, 232], [96, 239, 76], [55, 0, 71]],
  [[77, 199, 219], [208, 176, 144], [190, 171, 104], [120, 179, 0], [240, 245, 230], [100, 191, 216], [126, 219, 31]],
];

function rgba(rows: number[][][]): Uint8ClampedArray {
  return Uint8ClampedArray.from(rows.flat().flatMap((pixel) => [...pixel, 255]));
}

test("frames are those of Pillow, bilinear", () => {
  const smaller = [
    [[101, 170, 132], [77, 169, 79], [152, 172, 73], [155, 118, 124]],
    [[96, 171, 143], [98, 144, 156], [113, 131, 113], [120, 102, 143]],
    [[162, 181, 177], [147, 146, 109], [170, 168, 162], [102, 163, 103]],
  ];
  assert.deepEqual([...inputFrame(rgba(NOISE), [5, 7], [3, 4], 4)], [...smaller, Array(4).fill([0, 0, 0])].flat(2));
  const larger = [
    [[95, 130, 194], [107, 138, 198], [156, 169, 215], [205, 199, 231], [217, 207, 235]],
    [[78, 128, 102], [83, 137, 107], [101, 176, 127], [119, 214, 146], [123, 224, 151]],
    [[61, 125, 10], [58, 136, 16], [45, 183, 38], [32, 229, 60], [29, 240, 66]],
  ];
  const corner = NOISE.slice(0, 2).map((row) => row.slice(0, 2));
  const frame = inputFrame(rgba(corner), [2, 2], [3, 5], 5);
  assert.deepEqual([...frame.slice(0, 45)], larger.flat(2));
  assert.ok(frame.slice(45).every((value) => value === 0));
});

test("sides are rounded half up, at least 1", () => {
  assert.deepEqual(frameSize([341, 512], 1024), [682, 1024]);
  assert.deepEqual(frameSize([1500, 1000], 512), [512, 341]);
  assert.deepEqual(frameSize([1, 5000], 512), [1, 512]);
});

test("logits are enlarged between pixels' middles", () => {
  // 1 at the left, -1 at the right: four times as wide, the middle is crossed in the middle.
  assert.deepEqual([...enlargedBits(Float32Array.from([1, -1]), [1, 2], [2, 8], 0)], [1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]);
  // A quarter of the way from 3 to -1 is 2.
  assert.deepEqual([...enlargedBits(Float32Array.from([3, -1]), [1, 2], [1, 4], 1.9)], [1, 1, 0, 0]);
  assert.deepEqual([...enlargedBits(Float32Array.from([3, -1]), [1, 2], [1, 4], 2.1)], [1, 0, 0, 0]);
  assert.deepEqual([...enlargedBits(Float32Array.from([3, -1, 3, -1]), [2, 2], [1, 2], 0)], [1, 0]);
});

test("of enlarged logits the padding is cut off", () => {
  const logits = Float32Array.from([4, 0, 0, -4]);
  assert.deepEqual([...enlarged(logits, [2, 2], [4, 4], [1, 4])], [4, 3, 1, 0]);
  assert.deepEqual([...enlarged(logits, [2, 2], [4, 4])].slice(4), [3, 2, 0, -1, 1, 0, -2, -3, 0, -1, -3, -4]);
});

test("float16", () => {
  const bits = Uint16Array.from([0x3c00, 0xc000, 0x3555, 0x7bff, 0x0001, 0x0400, 0, 0x7c00, 0xfc00]);
  assert.deepEqual([...halfToFloat(bits)], [1, -2, 0.333251953125, 65504, 2 ** -24, 2 ** -14, 0, Infinity, -Infinity]);
  assert.ok(Number.isNaN(halfToFloat(Uint16Array.from([0x7e00]))[0]));
});
