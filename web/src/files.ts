// Files that users take home: JSON as COCO and SA-1B have it, and names.

import { type Mask, countsToText } from "./masks";

export interface ImageName {
  readonly name: string;
  readonly width: number;
  readonly height: number;
}

function segmentation(mask: Mask) {
  return { size: mask.size, counts: countsToText(mask.counts) };
}

function scores(mask: Mask) {
  const stability = mask.stabilityScore === undefined ? {} : { stability_score: mask.stabilityScore };
  return { predicted_iou: mask.predictedIou, ...stability };
}

/** A COCO file of one image. Boxes count the last pixel. */
export function cocoFile({ name, width, height }: ImageName, masks: readonly Mask[]) {
  return {
    images: [{ id: 1, file_name: name, width, height }],
    categories: [{ id: 1, name: "object" }],
    annotations: masks.map((mask, index) => ({
      id: index + 1,
      image_id: 1,
      category_id: 1,
      iscrowd: 0,
      area: mask.area,
      bbox: mask.bbox,
      segmentation: segmentation(mask),
      ...scores(mask),
    })),
  };
}

/** An image's file in SA-1B's layout. Boxes end at the last pixel's first corner, as those of `to_sa1b`. */
export function sa1bFile({ name, width, height }: ImageName, masks: readonly Mask[]) {
  return {
    image: { image_id: 1, width, height, file_name: name },
    annotations: masks.map((mask, id) => ({
      id,
      area: mask.area,
      bbox: mask.area ? [mask.bbox[0], mask.bbox[1], mask.bbox[2] - 1, mask.bbox[3] - 1] : [0, 0, 0, 0],
      segmentation: segmentation(mask),
      ...scores(mask),
    })),
  };
}

/** "holiday.dog.jpg" -> "holiday.dog" */
export function stem(name: string): string {
  return name.replace(/\.[^.]*$/, "") || "image";
}

export function save(content: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export function saveJson(content: unknown, name: string): void {
  save(new Blob([JSON.stringify(content)], { type: "application/json" }), name);
}
