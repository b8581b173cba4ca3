// Which decoder a page works with: its own, where the server has the file; until then, and otherwise, the server.

import { type Decoder, LocalDecoder, RemoteDecoder } from "./decoders";
import { find } from "./dom";
import { fail, reasonOf } from "./frame";
import type { Server } from "./server";

const ASK_AGAIN = 10_000; // milliseconds

export class DecoderChoice {
  now: Promise<Decoder>;
  private readonly remote: RemoteDecoder;

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
    const ready = await this.now;
    document.documentElement.dataset.decoder = ready.place;
    await this.onReady(ready);
  }
}
