import assert from "node:assert/strict";
import { test } from "node:test";
import { bitsOf, contains, countsToText, iouOfBits, maskOfBits, maskOfCounts, masksAt, textToCounts } from "../src/masks";

function randomBits(count: number, seed: number): Uint8Array {
  let state = seed;
  return Uint8Array.from({ length: count }, () => {
    state = (state * 1103515245 + 12345) % 2 ** 31;
    return +(state > 2 ** 30);
  });
}

test("bits come back", () => {
  for (const size of [[1, 1], [1, 7], [7, 1], [5, 8]] as const) {
    for (let seed = 1; seed < 20; seed++) {
      const bits = randomBits(size[0] * size[1], seed);
      const mask = maskOfBits(bits, size, 0.5);
      assert.deepEqual(bitsOf(mask), bits);
      assert.equal(mask.area, bits.reduce((a, b) => a + b, 0));
      assert.deepEqual(textToCounts(countsToText(mask.counts)), mask.counts);
      bits.forEach((bit, at) => assert.equal(contains(mask, (at % size[1]) + 0.5, Math.floor(at / size[1]) + 0.5), bit === 1));
    }
  }
});

test("two masks are compared", () => {
  const [one, other, none] = [[0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]].map((bits) => Uint8Array.from(bits));
  assert.equal(iouOfBits(one, one), 1);
  assert.equal(iouOfBits(one, other), 1 / 3);
  assert.equal(iouOfBits(one, none), 0);
  assert.equal(iouOfBits(none, none), 1);
});

test("runs go down the columns, and the box is tight", () => {
  const bits = Uint8Array.from([0, 0, 0, 0, /**/ 0, 1, 1, 0, /**/ 0, 0, 1, 0]);
  const mask = maskOfBits(bits, [3, 4], 0.5);
  assert.deepEqual(mask.counts, [4, 1, 2, 2, 3]);
  assert.deepEqual(mask.bbox, [1, 1, 2, 2]);
  assert.deepEqual(maskOfBits(new Uint8Array(12), [3, 4], 0).bbox, [0, 0, 0, 0]);
});

test("text is COCO's", () => {
  // pycocotools.mask.encode of a (200, 300) mask with [20:150, 30] and [0:200, 40:45] set.
  assert.equal(countsToText([6020, 130, 1850, 1000, 51000]), "Tl5R4ji1Vk0no_1");
});

test("text is COCO's, to the letter and back", () => {
  // What pycocotools.mask.encode gives for these pixels, written row by row.
  for (const [size, pixels, text] of [
    [[3, 5], "000000000000000", "?"],
    [[3, 5], "111111111111111", "0?"],
    [[6, 9], "100011111110101011000011101111100110011010100101011010", "021O00000131MN0010O0041MO10O0O032"],
    [[11, 4], "00000000000001000101000110000000010011011101", "61211001<OD0"],
    [[1, 13], "1110110111011", "031O010O"],
    [[13, 1], "0101110100111", "11120N12"],
    [[7, 6], "100000000000000000000000000000000000000000", "01Y1"],
    [[7, 6], "000000000000000000000000000000000000000001", "Y11"],
  ] as const) {
    const bits = Uint8Array.from(pixels, Number);
    assert.equal(countsToText(maskOfBits(bits, size, 0).counts), text);
    assert.deepEqual(bitsOf(maskOfCounts(textToCounts(text), size, 0)), bits);
  }
});

test("what is no mask is refused", () => {
  assert.throws(() => maskOfCounts([3, 4], [2, 3], 0), /7 pixels; the image has 6/);
  assert.throws(() => textToCounts("T"), /end within a number/);
});

test("masks under the cursor, smallest first", () => {
  const all = maskOfBits(Uint8Array.from([1, 1, 1, 1]), [2, 2], 0.9);
  const left = maskOfBits(Uint8Array.from([1, 0, 1, 0]), [2, 2], 0.8);
  const right = maskOfBits(Uint8Array.from([0, 1, 0, 1]), [2, 2], 0.7);
  assert.deepEqual(masksAt([all, left, right], 0.5, 1.5), [left, all]);
  assert.deepEqual(masksAt([all, left, right], -0.5, 1.5), []);
});
