// Whether this device's GPU decodes: where it gives the same masks of an image as the page's own decoder, and sooner.

import { type Decoder, LocalDecoder } from "./decoders";
import { iouOfBits } from "./masks";
import type { OpenedImage } from "./opened_image";
import type { Prompts } from "./prompts";
import type { ModelInfo, Server } from "./server";

const RUNS = 5;
const SAME = 0.99;

/** `?decoder=wasm` in the page's address asks for no trial, `?decoder=webgpu` for the GPU however slow it is. */
const wish = new URLSearchParams(location.search).get("decoder");

interface Gpu {
  requestAdapter(options: { powerPreference: "high-performance" }): Promise<{ info?: { isFallbackAdapter?: boolean } } | null>;
}

/** The GPU's decoder, which knows the image; null where there is none, or none that is worth it. */
export async function gpuDecoder(server: Server, model: ModelInfo, own: Decoder, image: OpenedImage): Promise<Decoder | null> {
  if (wish === "wasm" || !(await hasGpu())) return null;
  const gpu = await LocalDecoder.load(server, model, "webgpu");
  try {
    await image.showTo(gpu);
    const points = [0.5, 0.3, 0.7].map((part) => ({ x: part * image.size[1], y: part * image.size[0], on: true }));
    for (const point of points) {
      const prompts = { points: [point], box: null };
      const [found, expected] = [await gpu.preview(prompts), await own.preview(prompts)];
      if (iouOfBits(found.bits, expected.bits) < SAME) throw new Error("this device's GPU decodes other masks");
    }
    const prompts = { points: points.slice(0, 1), box: null };
    if (wish === "webgpu" || (await median(gpu, prompts)) < (await median(own, prompts))) return gpu;
    gpu.close();
    return null;
  } catch (error) {
    gpu.close();
    throw error;
  }
}

/** Its runtime suspends WebAssembly while the GPU works. A GPU that the processor plays is never worth it. */
async function hasGpu(): Promise<boolean> {
  const { gpu } = navigator as Navigator & { gpu?: Gpu };
  if (!gpu || !("Suspending" in WebAssembly)) return false;
  const adapter = await gpu.requestAdapter({ powerPreference: "high-performance" });
  return adapter !== null && (wish === "webgpu" || !adapter.info?.isFallbackAdapter);
}

async function median(decoder: Decoder, prompts: Prompts): Promise<number> {
  const times: number[] = [];
  for (let run = 0; run < RUNS; run++) times.push((await decoder.preview(prompts)).milliseconds);
  return times.sort((a, b) => a - b)[RUNS >> 1];
}
