import assert from "node:assert/strict";
import { test } from "node:test";
import { cocoFile, sa1bFile, stem } from "../src/files";
import { maskOfBits } from "../src/masks";

const IMAGE = { name: "dog.jpg", width: 4, height: 3 };
const MASK = maskOfBits(Uint8Array.from([0, 0, 0, 0, /**/ 0, 1, 1, 0, /**/ 0, 0, 1, 0]), [3, 4], 0.75);

test("COCO's boxes count the last pixel", () => {
  const file = cocoFile(IMAGE, [MASK]);
  assert.deepEqual(file.images, [{ id: 1, file_name: "dog.jpg", width: 4, height: 3 }]);
  assert.deepEqual(file.annotations[0].bbox, [1, 1, 2, 2]);
  assert.equal(file.annotations[0].area, 3);
  assert.deepEqual(file.annotations[0].segmentation, { size: [3, 4], counts: "41211" });
});

test("SA-1B's do not", () => {
  const file = sa1bFile(IMAGE, [MASK, { ...MASK, stabilityScore: 0.5 }]);
  assert.deepEqual(file.image, { image_id: 1, file_name: "dog.jpg", width: 4, height: 3 });
  assert.deepEqual(file.annotations[0].bbox, [1, 1, 1, 1]);
  assert.deepEqual(
    file.annotations.map(({ id, predicted_iou, ...rest }) => [id, predicted_iou, "stability_score" in rest]),
    [[0, 0.75, false], [1, 0.75, true]],
  );
});

test("names without their endings", () => {
  assert.deepEqual(["a.b.jpg", "a", ".png"].map(stem), ["a.b", "a", "image"]);
});
