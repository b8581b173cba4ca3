// Which decoder a page works with: its own, where the server has the file; until then, and otherwise, the server. Once
// an image is open, the GPU's, where that is faster.

import { type Decoder, LocalDecoder, RemoteDecoder } from "./decoders";
import { find } from "./dom";
import { fail, reasonOf } from "./frame";
import { gpuDecoder } from "./gpu_trial";
import type { OpenedImage } from "./opened_image";
import type { Server } from "./server";

const ASK_AGAIN = 10_000; // milliseconds

export class DecoderChoice {
  now: Promise<Decoder>;
  private readonly remote: RemoteDecoder;
  private isTried = false;

  /** `onReady`: the page's own decoder is there, for images that are open already. */
  constructor(
    private readonly server: Server,
    private readonly onReady: (decoder: Decoder) => Promise<void>,
  ) {
    this.remote = new RemoteDecoder(server);
    this.now = Promise.resolve(this.remote);
  }

  async choose(): Promise<void> {
    const model = await this.server.model();
    find("model").textContent = model.name;
    const text = document.getElementById("text"); // annotators' page has none
    if (text) text.hidden = !model.phrases;
    if (model.onnx === "being made") {
      setTimeout(() => void this.choose().catch(fail), ASK_AGAIN);
      return;
    }
    if (model.onnx !== "ready") return;
    this.now = LocalDecoder.load(this.server, model).catch((error) => {
      fail(new Error(`the decoder does not run in this browser, so the server decodes (${reasonOf(error)})`));
      return this.remote;
    });
    await this.begin();
  }

  /** Lets the GPU decode from now on, if it is worth it on this image. Tried once. */
  async tryGpu(image: OpenedImage): Promise<void> {
    const own = await this.now;
    if (this.isTried || !(own instanceof LocalDecoder)) return;
    this.isTried = true;
    try {
      const gpu = await gpuDecoder(this.server, await this.server.model(), own, image);
      if (!gpu) return;
      this.now = Promise.resolve(gpu);
      await this.begin();
    } catch (error) {
      this.isTried = image.isOpen; // else the page went on to another image meanwhile
      if (this.isTried) console.warn(`the GPU does not decode (${reasonOf(error)})`);
    }
  }

  private async begin(): Promise<void> {
    const decoder = await this.now;
    document.documentElement.dataset.decoder = decoder.place;
    await this.onReady(decoder);
  }
}
