// The ONNX decoder at work, in a thread of its own. One message in, one answer out, by number.

import * as ort from "onnxruntime-web/wasm";
import type { Provider } from "./decoders";
import { type Mask, type Size, maskOfBits } from "./masks";
import { type Found, type Prompts, decoderPoints, offered } from "./prompts";
import { bitsAbove, enlarged, enlargedBits, halfToFloat, inputFrame } from "./resampling";
import type { EncodedImage, ModelInfo } from "./server";

export type Task =
  | { readonly kind: "load"; readonly file: ArrayBuffer; readonly model: ModelInfo }
  | { readonly kind: "image"; readonly bitmap: ImageBitmap | null; readonly encoded: EncodedImage }
  | { readonly kind: "preview" | "decode"; readonly prompts: Prompts };

export interface Preview {
  /** (h, w) of 0 and 1, the image as resized for the model */
  readonly bits: Uint8Array;
  readonly size: Size;
  readonly milliseconds: number;
}

export type Message = { readonly number: number; readonly task: Task };
export type Answer = { readonly number: number; readonly result?: unknown; readonly error?: string };

// build.mjs builds this file for each provider, beside the runtime that has it.
declare const PROVIDER: Provider;
const MOST_THREADS = 4;

class Decoder {
  private fixed: Record<string, ort.Tensor> = {};
  private size: Size = [1, 1];
  private inputSize: Size = [1, 1];

  private constructor(
    private readonly session: ort.InferenceSession,
    private readonly model: ModelInfo,
  ) {}

  static async load(file: ArrayBuffer, model: ModelInfo): Promise<Decoder> {
    const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS) : 1;
    ort.env.wasm.numThreads = threads;
    ort.env.wasm.wasmPaths = new URL("runtime/", self.location.href).href;
    ort.env.logLevel = "error";
    const session = await ort.InferenceSession.create(file, { executionProviders: [PROVIDER] });
    return new Decoder(session, model);
  }

  /** `bitmap`: for models with edge refinement, which look at the image itself. */
  setImage(bitmap: ImageBitmap | null, encoded: EncodedImage): void {
    this.size = encoded.size;
    this.inputSize = encoded.inputSize;
    const [, channels, height, width] = encoded.embeddingShape;
    const all = halfToFloat(new Uint16Array(encoded.embedding));
    const own = this.model.prompt_embed_dim;
    const cut = own * height * width;
    const low = this.model.low_res_size;
    this.fixed = {
      image_embeddings: new ort.Tensor("float32", all.slice(0, cut), [1, own, height, width]),
      mask_input: new ort.Tensor("float32", new Float32Array(low * low), [1, 1, low, low]),
      has_mask_input: new ort.Tensor("float32", new Float32Array(1), [1]),
      orig_im_size: new ort.Tensor("float32", Float32Array.from(this.size), [2]),
    };
    if (channels > own) {
      this.fixed.image_details = new ort.Tensor("float32", all.slice(cut), [1, channels - own, height, width]);
    }
    if (bitmap) {
      const side = this.model.image_size;
      this.fixed.input_image = new ort.Tensor("uint8", this.frame(bitmap), [1, side, side, 3]);
    }
    bitmap?.close();
  }

  async preview(prompts: Prompts): Promise<Preview> {
    const start = performance.now();
    const { masks, ious } = await this.run(prompts);
    const { indices, best } = offered(prompts, ious);
    const bits = bitsAbove(this.inFrame(masks, indices[best]), this.model.mask_threshold);
    return { bits, size: this.inputSize, milliseconds: performance.now() - start };
  }

  async decode(prompts: Prompts): Promise<Found> {
    const start = performance.now();
    const { masks, ious } = await this.run(prompts);
    const { indices, best } = offered(prompts, ious);
    const found = indices.map((index) => this.mask(this.inFrame(masks, index), ious[index]));
    return { masks: found, best, milliseconds: performance.now() - start };
  }

  /** Masks as they come: of low resolution, so that only what is shown is enlarged. */
  private async run(prompts: Prompts): Promise<{ masks: ort.Tensor; ious: Float32Array }> {
    const { coords, labels } = decoderPoints(prompts, this.size, this.inputSize);
    const given: Record<string, ort.Tensor> = {
      ...this.fixed,
      point_coords: new ort.Tensor("float32", coords, [1, labels.length, 2]),
      point_labels: new ort.Tensor("float32", labels, [1, labels.length]),
    };
    const { inputNames, outputNames } = this.session;
    const masks = outputNames.includes("refined_masks") ? "refined_masks" : "low_res_masks";
    const answer = await this.session.run(Object.fromEntries(inputNames.map((name) => [name, given[name]])), [
      masks,
      "iou_predictions",
    ]);
    return { masks: answer[masks], ious: answer.iou_predictions.data as Float32Array };
  }

  /** Logits of a mask, of the image as resized for the model. */
  private inFrame(masks: ort.Tensor, index: number): Float32Array {
    const [, , height, width] = masks.dims;
    const logits = (masks.data as Float32Array).subarray(index * height * width, (index + 1) * height * width);
    const side = this.model.image_size;
    return enlarged(logits, [height, width], [side, side], this.inputSize);
  }

  private mask(inFrame: Float32Array, predictedIou: number): Mask {
    const bits = enlargedBits(inFrame, this.inputSize, this.size, this.model.mask_threshold);
    return maskOfBits(bits, this.size, predictedIou);
  }

  private frame(bitmap: ImageBitmap): Uint8Array {
    const [height, width] = this.size;
    const context = new OffscreenCanvas(width, height).getContext("2d");
    if (!context) throw new Error("this browser gives no canvas to threads");
    context.drawImage(bitmap, 0, 0);
    const pixels = context.getImageData(0, 0, width, height).data;
    return inputFrame(pixels, this.size, this.inputSize, this.model.image_size);
  }
}

let decoder: Decoder | null = null;

async function answer(task: Task): Promise<unknown> {
  if (task.kind === "load") {
    decoder = await Decoder.load(task.file, task.model);
    const threads = ort.env.wasm.numThreads;
    return { by: PROVIDER === "webgpu" ? "WebGPU" : threads === 1 ? "one thread" : `${threads} threads` };
  }
  if (!decoder) throw new Error("the decoder is not loaded");
  if (task.kind === "image") return decoder.setImage(task.bitmap, task.encoded);
  return task.kind === "preview" ? decoder.preview(task.prompts) : decoder.decode(task.prompts);
}

// One after the other: a session runs one prompt at a time, and an image must not change under it.
let last: Promise<unknown> = Promise.resolve();
self.onmessage = ({ data: { number, task } }: MessageEvent<Message>) => {
  last = last.then(async () => {
    try {
      self.postMessage({ number, result: await answer(task) } satisfies Answer);
    } catch (error) {
      self.postMessage({ number, error: error instanceof Error ? error.message : String(error) } satisfies Answer);
    }
  });
};
