// The server's interface, as docs/serving.md describes it.

import { EventParser } from "./events";
import { type Mask, type Size, maskOfCounts, textToCounts } from "./masks";

export interface ModelInfo {
  readonly name: string;
  readonly image_size: number;
  readonly prompt_embed_dim: number;
  readonly low_res_size: number;
  readonly mask_threshold: number;
  readonly crf: boolean;
  /** Whether phrases can be found. */
  readonly phrases: boolean;
  readonly onnx: "ready" | "being made" | "not available";
}

/** An image that the server knows, and its embedding: float16 (1, C, h, w). */
export interface EncodedImage {
  readonly id: string;
  readonly size: Size;
  readonly inputSize: Size;
  readonly embeddingShape: readonly number[];
  readonly embedding: ArrayBuffer;
}

export interface Progress {
  readonly done: number;
  readonly total: number;
}

/** A mask that a phrase names. */
export interface NamedMask extends Mask {
  readonly text: string;
  readonly score: number;
}

interface MaskJson {
  readonly text?: string;
  readonly score?: number;
  readonly segmentation: { readonly size: [number, number]; readonly counts: string };
  readonly predicted_iou: number;
  readonly stability_score?: number;
}

export class ServerError extends Error {
  constructor(
    message: string,
    readonly status: number,
    /** What the server sent beside the reason. */
    readonly answer: unknown = null,
  ) {
    super(message);
  }
}

const TOKEN = "sam_jax.token";

function maskOf({ segmentation, predicted_iou, stability_score }: MaskJson): Mask {
  return maskOfCounts(textToCounts(segmentation.counts), segmentation.size, predicted_iou, stability_score);
}

function namedMaskOf(json: MaskJson): NamedMask {
  return { ...maskOf(json), text: json.text ?? "", score: json.score ?? 0 };
}

function numbers(answer: Response, header: string): number[] {
  return (answer.headers.get(header) ?? "").split(",").map(Number);
}

export class Server {
  /** `askToken`: asks the user, where the server wants a token; null is no answer. */
  constructor(private readonly askToken: () => Promise<string | null>) {}

  async model(): Promise<ModelInfo> {
    return (await this.send("/v1/model")).json();
  }

  /** Whether images are annotated here, see docs/engine.md. */
  async hasEngine(): Promise<boolean> {
    return this.send("/v1/engine").then(
      () => true,
      () => false,
    );
  }

  async decoderFile(): Promise<ArrayBuffer> {
    return (await this.send("/v1/model/decoder.onnx")).arrayBuffer();
  }

  async encode(file: Blob): Promise<EncodedImage> {
    const headers = { Accept: "application/octet-stream", "Content-Type": "application/octet-stream" };
    const answer = await this.send("/v1/images", { method: "POST", body: file, headers });
    const [height, width] = numbers(answer, "X-Size");
    const [inputHeight, inputWidth] = numbers(answer, "X-Input-Size");
    return {
      id: answer.headers.get("X-Image-Id") ?? "",
      size: [height, width],
      inputSize: [inputHeight, inputWidth],
      embeddingShape: numbers(answer, "X-Embedding-Shape"),
      embedding: await answer.arrayBuffer(),
    };
  }

  async masks(id: string, object: Record<string, unknown>, multimask: boolean): Promise<Mask[]> {
    const wanted = { objects: [object], multimask_output: multimask };
    const answer = await (await this.post(`/v1/images/${id}/masks`, wanted)).json();
    return answer.objects[0].masks.map(maskOf);
  }

  /** Everything in an image. Aborting the signal closes the connection, which ends the server's work. */
  async everything(id: string, pointsPerSide: number, onProgress: (p: Progress) => void, signal: AbortSignal): Promise<Mask[]> {
    return (await this.found(`/v1/images/${id}/everything`, { points_per_side: pointsPerSide }, onProgress, signal)).map(maskOf);
  }

  /** What phrases name among everything, phrase by phrase, the best first. */
  async named(id: string, phrases: readonly string[], pointsPerSide: number, onProgress: (p: Progress) => void, signal: AbortSignal): Promise<NamedMask[]> {
    const wanted = { phrases, points_per_side: pointsPerSide };
    return (await this.found(`/v1/images/${id}/text`, wanted, onProgress, signal)).map(namedMaskOf);
  }

  private async found(path: string, wanted: unknown, onProgress: (p: Progress) => void, signal: AbortSignal): Promise<MaskJson[]> {
    const answer = await this.post(path, wanted, signal);
    if (!answer.body) throw new ServerError("the server sent nothing", answer.status);
    const [reader, text, parser] = [answer.body.getReader(), new TextDecoder(), new EventParser()];
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new ServerError("the connection ended early; try again", 0);
      for (const event of parser.push(text.decode(value, { stream: true }))) {
        const data = JSON.parse(event.data);
        if (event.name === "progress") onProgress(data);
        else if (event.name === "masks") return data.masks;
        else if (event.name === "error") throw new ServerError(data.error, 0);
      }
    }
  }

  post(path: string, body: unknown, signal?: AbortSignal): Promise<Response> {
    const headers = { "Content-Type": "application/json" };
    return this.send(path, { method: "POST", body: JSON.stringify(body), headers, signal });
  }

  async send(path: string, init: RequestInit = {}): Promise<Response> {
    for (;;) {
      const token = sessionStorage.getItem(TOKEN);
      const headers = { ...init.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
      let answer: Response;
      try {
        answer = await fetch(path, { ...init, headers });
      } catch (error) {
        if (init.signal?.aborted) throw error;
        throw new ServerError("the server cannot be reached; is it still running?", 0);
      }
      if (answer.ok) return answer;
      if (answer.status === 401) {
        const given = await this.askToken();
        if (given) {
          sessionStorage.setItem(TOKEN, given);
          continue;
        }
      }
      const [reason, said] = await reasonOf(answer);
      throw new ServerError(reason, answer.status, said);
    }
  }
}

async function reasonOf(answer: Response): Promise<[string, unknown]> {
  const otherwise = `the server answered ${answer.status}`;
  try {
    const said = await answer.json();
    return [said.error ?? otherwise, said];
  } catch {
    return [otherwise, null];
  }
}
