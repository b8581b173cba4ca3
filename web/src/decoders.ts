// Who turns prompts into masks: a worker of the page, or the server.

import { bitsOf } from "./masks";
import { type Found, type Prompts, bestOf, isAmbiguous, serverObject } from "./prompts";
import type { EncodedImage, ModelInfo, Server } from "./server";
import type { Answer, Preview, Task } from "./worker";

export type { Preview } from "./worker";

export interface Decoder {
  /** Where it runs, for people. */
  readonly place: string;
  setImage(bitmap: ImageBitmap, encoded: EncodedImage): Promise<void>;
  preview(prompts: Prompts): Promise<Preview>;
  decode(prompts: Prompts): Promise<Found>;
}

/** What computes: this device's processor or its graphics processor. */
export type Provider = "wasm" | "webgpu";

/** The ONNX decoder in a worker. */
export class LocalDecoder implements Decoder {
  place = "in this browser";
  private readonly worker: Worker;
  private readonly waiting = new Map<number, { resolve(result: never): void; reject(error: Error): void }>();
  private number = 0;

  private constructor(private readonly model: ModelInfo, provider: Provider) {
    this.worker = new Worker(new URL(`worker_${provider}.js`, import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }: MessageEvent<Answer>) => {
      const one = this.waiting.get(data.number);
      this.waiting.delete(data.number);
      if (data.error !== undefined) one?.reject(new Error(data.error));
      else one?.resolve(data.result as never);
    };
    this.worker.onerror = (event) => this.fail(new Error(event.message || "the decoder's worker did not start"));
  }

  static async load(server: Server, model: ModelInfo, provider: Provider = "wasm"): Promise<LocalDecoder> {
    const decoder = new LocalDecoder(model, provider);
    try {
      const file = await server.decoderFile();
      const { by } = await decoder.ask<{ by: string }>({ kind: "load", file, model }, [file]);
      decoder.place = `in this browser, ${by}`;
      return decoder;
    } catch (error) {
      decoder.close();
      throw error;
    }
  }

  close(): void {
    this.worker.terminate();
    this.fail(new Error("this decoder is closed"));
  }

  async setImage(bitmap: ImageBitmap, encoded: EncodedImage): Promise<void> {
    const copy = this.model.crf ? await createImageBitmap(bitmap) : null;
    await this.ask({ kind: "image", bitmap: copy, encoded }, copy ? [copy] : []);
  }

  preview(prompts: Prompts): Promise<Preview> {
    return this.ask({ kind: "preview", prompts });
  }

  decode(prompts: Prompts): Promise<Found> {
    return this.ask({ kind: "decode", prompts });
  }

  private ask<T>(task: Task, moved: Transferable[] = []): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      this.waiting.set(++this.number, { resolve, reject });
      this.worker.postMessage({ number: this.number, task }, moved);
    });
  }

  private fail(error: Error): void {
    for (const { reject } of this.waiting.values()) reject(error);
    this.waiting.clear();
  }
}

/** The server decodes: where it has no ONNX files, or until they are there. */
export class RemoteDecoder implements Decoder {
  readonly place = "on the server";
  private id = "";

  constructor(private readonly server: Server) {}

  async setImage(_: ImageBitmap, encoded: EncodedImage): Promise<void> {
    this.id = encoded.id;
  }

  async preview(prompts: Prompts): Promise<Preview> {
    const { masks, best, milliseconds } = await this.decode(prompts);
    return { bits: bitsOf(masks[best]), size: masks[best].size, milliseconds };
  }

  async decode(prompts: Prompts): Promise<Found> {
    const start = performance.now();
    const ask = (multimask: boolean) => this.server.masks(this.id, serverObject(prompts), multimask);
    const ambiguous = isAmbiguous(prompts);
    const masks = ambiguous ? await ask(true) : (await Promise.all([ask(false), ask(true)])).flat();
    const best = ambiguous ? bestOf(masks.map((mask) => mask.predictedIou)) : 0;
    return { masks, best, milliseconds: performance.now() - start };
  }
}
