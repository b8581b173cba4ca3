// The data engine's part of the server's interface, as docs/engine.md describes it.

import { type Mask, countsToText, maskOfCounts, textToCounts } from "../masks";
import type { Prompts } from "../prompts";
import { type Server, ServerError } from "../server";
import type { Write } from "./saving";

const LONGEST_SILENCE = 30_000; // milliseconds

export interface Segmentation {
  readonly size: readonly [number, number];
  readonly counts: string;
}

export interface EngineInfo {
  readonly stage: string;
  readonly images: number;
  readonly done: number;
  readonly open: number;
  readonly masks: number;
  readonly model_version: string;
  readonly promoted: string;
  readonly hint_seconds: number;
  readonly statistics: {
    readonly masks_per_image: number | null;
    readonly seconds_per_mask: number | null;
    readonly share_new: number | null;
    readonly proposal_iou: number | null;
  };
}

/** A mask as the store has it. */
export interface StoredMask {
  readonly key: string;
  readonly version: number;
  readonly state: "proposed" | "accepted" | "deleted";
  readonly stage: string;
  readonly author: string | null;
  readonly name: string | null;
  readonly segmentation: Segmentation;
  readonly predicted_iou: number | null;
  readonly seconds: number | null;
  readonly corrections: number | null;
  readonly prominence: number | null;
}

export interface EngineTask {
  readonly task_id: number;
  readonly version: number;
  readonly stage: string;
  readonly lease_seconds: number;
  readonly image: { readonly id: number; readonly file_name: string; readonly size: readonly [number, number] };
  readonly masks: readonly StoredMask[];
}

/** What is said of a mask that is accepted. */
export interface MaskBody {
  readonly annotator: string;
  readonly segmentation: Segmentation;
  readonly name: string | null;
  readonly prompts: Record<string, unknown> | null;
  readonly corrections: number;
  readonly seconds: number;
  /** The first mask that the model offered for the object. */
  readonly proposal: Segmentation | null;
  readonly predicted_iou: number | null;
  readonly prominence: number | null;
}

export class Engine {
  constructor(private readonly server: Server) {}

  async info(): Promise<EngineInfo> {
    return (await this.server.send("/v1/engine")).json();
  }

  /** An image to annotate: the one that was begun, else the next, but for those that were passed. null: nothing is left. */
  async next(annotator: string, passed: readonly number[]): Promise<EngineTask | null> {
    const answer = await this.server.post("/v1/engine/next", { annotator, passed });
    return answer.status === 204 ? null : answer.json();
  }

  async file(imageId: number): Promise<Blob> {
    return (await this.server.send(`/v1/engine/images/${imageId}/file`)).blob();
  }

  async renew(task: number, annotator: string): Promise<number> {
    return (await (await this.server.post(`/v1/engine/tasks/${task}/renew`, { annotator })).json()).lease_seconds;
  }

  /** Writes a mask, or deletes it; null is one that is not there any more. */
  async deliver({ task, key, body, annotator }: Write, version: number): Promise<StoredMask | null> {
    const path = `/v1/engine/tasks/${task}/masks/${key}`;
    const signal = AbortSignal.timeout(LONGEST_SILENCE);
    try {
      if (body) {
        const headers = { "Content-Type": "application/json" };
        return await (await this.server.send(path, { method: "PUT", body: JSON.stringify({ ...body, version }), headers, signal })).json();
      }
      const query = new URLSearchParams({ annotator, version: String(version) });
      await this.server.send(`${path}?${query}`, { method: "DELETE", signal });
    } catch (error) {
      if (signal.aborted) throw new ServerError("the server does not answer", 0);
      if (body || !(error instanceof ServerError) || error.status !== 404) throw error;
    }
    return null;
  }

  async finish(task: number, annotator: string, seconds: number, order: readonly string[]): Promise<EngineInfo> {
    return (await this.server.post(`/v1/engine/tasks/${task}/done`, { annotator, seconds, order })).json();
  }

  async release(task: number, annotator: string): Promise<void> {
    await this.server.post(`/v1/engine/tasks/${task}/release`, { annotator });
  }
}

export function segmentationOf(mask: Mask): Segmentation {
  return { size: [...mask.size] as [number, number], counts: countsToText(mask.counts) };
}

export function maskOfSegmentation({ size, counts }: Segmentation, predictedIou: number | null): Mask {
  return maskOfCounts(textToCounts(counts), size, predictedIou ?? 0);
}

export function promptsJson({ points, box }: Prompts): Record<string, unknown> | null {
  if (!points.length && !box) return null;
  return {
    point_coords: points.length ? points.map(({ x, y }) => [x, y]) : null,
    point_labels: points.length ? points.map(({ on }) => +on) : null,
    box,
  };
}
