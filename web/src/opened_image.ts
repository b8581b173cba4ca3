// An image that the server has encoded and a decoder knows.

import type { Decoder, Preview } from "./decoders";
import type { Mask, Size } from "./masks";
import type { Found, Prompts } from "./prompts";
import { type EncodedImage, type NamedMask, type Progress, type Server, ServerError } from "./server";

export class OpenedImage {
  private closed = false;

  private constructor(
    readonly name: string,
    readonly bitmap: ImageBitmap,
    private encoded: EncodedImage,
    private readonly file: Blob,
    private readonly server: Server,
    private decoder: Decoder,
  ) {}

  static async open(file: Blob, name: string, bitmap: ImageBitmap, server: Server, coming: Promise<Decoder>): Promise<OpenedImage> {
    const encoded = await server.encode(file);
    const [height, width] = encoded.size;
    if (bitmap.width !== width || bitmap.height !== height) {
      throw new Error(`the server sees ${width} x ${height} pixels, this browser ${bitmap.width} x ${bitmap.height}`);
    }
    const decoder = await coming;
    await decoder.setImage(bitmap, encoded);
    return new OpenedImage(name, bitmap, encoded, file, server, decoder);
  }

  get size(): Size {
    return this.encoded.size;
  }

  get decodedBy(): string {
    return this.decoder.place;
  }

  /** A decoder that is ready only now. */
  async use(decoder: Decoder): Promise<void> {
    await this.showTo(decoder);
    this.decoder = decoder;
  }

  showTo(decoder: Decoder): Promise<void> {
    return decoder.setImage(this.bitmap, this.encoded);
  }

  get isOpen(): boolean {
    return !this.closed;
  }

  close(): void {
    this.closed = true;
    this.bitmap.close();
  }

  decode(prompts: Prompts): Promise<Found> {
    return this.known(() => this.decoder.decode(prompts));
  }

  preview(prompts: Prompts): Promise<Preview> {
    return this.known(() => this.decoder.preview(prompts));
  }

  everything(pointsPerSide: number, onProgress: (progress: Progress) => void, signal: AbortSignal): Promise<Mask[]> {
    return this.known((id) => this.server.everything(id, pointsPerSide, onProgress, signal));
  }

  named(phrases: readonly string[], pointsPerSide: number, onProgress: (progress: Progress) => void, signal: AbortSignal): Promise<NamedMask[]> {
    return this.known((id) => this.server.named(id, phrases, pointsPerSide, onProgress, signal));
  }

  /** Asks again where the server has forgotten the image meanwhile. */
  private async known<T>(ask: (id: string) => Promise<T>): Promise<T> {
    try {
      return await ask(this.encoded.id);
    } catch (error) {
      if (!(error instanceof ServerError) || error.status !== 404 || this.closed) throw error;
      this.encoded = await this.server.encode(this.file);
      await this.decoder.setImage(this.bitmap, this.encoded);
      return ask(this.encoded.id);
    }
  }
}

/** An image as the browser shows it, upright, in the colours of its file. */
export function readImage(file: Blob, name: string): Promise<ImageBitmap> {
  return createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" }).catch(() => {
    throw new Error(`${name} is not an image that this browser can show; try JPEG or PNG`);
  });
}
