// The canvas: an image, masks over it, prompts on top.

import { MUCH, type Place, type View, centered, fit, panned, toImage, toScreen, zoomed } from "./geometry";
import type { Size } from "./masks";
import type { Box, Point } from "./prompts";
import { canvasOf, contextOf } from "./painting";

/** What to draw. Layers cover the whole image, whatever resolution they have. */
export interface Scene {
  readonly image: ImageBitmap;
  readonly size: Size;
  readonly layers: readonly { readonly canvas: HTMLCanvasElement; readonly opacity: number }[];
  readonly points: readonly Point[];
  readonly box: Box | null;
  readonly cursor: Place | null;
  /** Draws what else there is, on top. */
  readonly mark?: (context: CanvasRenderingContext2D, view: View) => void;
}

const MARGIN = 16;
const [ON, OFF] = ["#1a9e5c", "#d43d3d"];

export class Stage {
  view: View = { scale: 1, left: 0, top: 0 };
  private scene: Scene | null = null;
  private drawing = false;
  private resized: { image: ImageBitmap; view: string; canvas: HTMLCanvasElement } | null = null;
  private fitted = true;

  constructor(readonly canvas: HTMLCanvasElement) {
    new ResizeObserver(() => this.resize()).observe(canvas);
  }

  show(scene: Scene | null, refit = false): void {
    this.scene = scene;
    if (refit) this.fit();
    this.redraw();
  }

  fit(): void {
    this.fitted = true;
    if (this.scene) this.view = fit(this.scene.size, this.room(), MARGIN);
    this.redraw();
  }

  actualSize(): void {
    this.fitted = false;
    if (this.scene) this.view = centered(this.scene.size, this.room(), 1);
    this.redraw();
  }

  zoom(factor: number, at: Place = this.middle()): void {
    this.fitted = false;
    if (this.scene) this.view = zoomed(this.view, factor, at, this.scene.size);
    this.redraw();
  }

  pan(dx: number, dy: number): void {
    this.fitted = false;
    this.view = panned(this.view, dx, dy);
    this.redraw();
  }

  /** A place of the page -> one of the image, in its pixels. */
  place(event: { clientX: number; clientY: number }): Place {
    return toImage(this.view, this.local(event));
  }

  local({ clientX, clientY }: { clientX: number; clientY: number }): Place {
    const { left, top } = this.canvas.getBoundingClientRect();
    return { x: clientX - left, y: clientY - top };
  }

  private room(): Size {
    return [this.canvas.clientHeight, this.canvas.clientWidth];
  }

  private middle(): Place {
    const [height, width] = this.room();
    return { x: width / 2, y: height / 2 };
  }

  private resize(): void {
    const [height, width] = this.room();
    this.canvas.width = Math.round(width * devicePixelRatio);
    this.canvas.height = Math.round(height * devicePixelRatio);
    if (this.fitted) this.fit();
    this.draw();
  }

  private redraw(): void {
    if (this.drawing) return;
    this.drawing = true;
    requestAnimationFrame(() => {
      this.drawing = false;
      this.draw();
    });
  }

  private draw(): void {
    const context = contextOf(this.canvas);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.scene) return;
    const { image, size, layers, points, box, cursor, mark } = this.scene;
    const { scale, left, top } = this.view;
    const rectangle = [left, top, size[1] * scale, size[0] * scale] as const;
    context.drawImage(this.imageAt(image, rectangle), 0, 0);
    context.scale(devicePixelRatio, devicePixelRatio);
    context.imageSmoothingEnabled = scale < MUCH;
    for (const { canvas, opacity } of layers) {
      context.globalAlpha = opacity;
      context.drawImage(canvas, ...rectangle);
    }
    context.globalAlpha = 1;
    if (box) this.drawBox(context, box);
    for (const point of points) this.drawPoint(context, point);
    mark?.(context, this.view);
    if (cursor) this.drawCursor(context, cursor);
  }

  /** The image alone, as the canvas shows it. Resizing it well takes long: it is done once for each view. */
  private imageAt(image: ImageBitmap, rectangle: readonly [number, number, number, number]): HTMLCanvasElement {
    const { width, height } = this.canvas;
    const view = [width, height, devicePixelRatio, ...rectangle].join();
    if (this.resized?.image === image && this.resized.view === view) return this.resized.canvas;
    const canvas = canvasOf(width, height);
    const context = contextOf(canvas);
    context.scale(devicePixelRatio, devicePixelRatio);
    context.imageSmoothingEnabled = this.view.scale < MUCH;
    context.imageSmoothingQuality = "high";
    context.drawImage(image, ...rectangle);
    this.resized = { image, view, canvas };
    return canvas;
  }

  private drawBox(context: CanvasRenderingContext2D, [x0, y0, x1, y1]: Box): void {
    const [from, to] = [toScreen(this.view, { x: x0, y: y0 }), toScreen(this.view, { x: x1, y: y1 })];
    context.beginPath();
    context.rect(from.x, from.y, to.x - from.x, to.y - from.y);
    strokeTwice(context);
  }

  /** A plus or a minus in a disc: the sign tells, not the colour alone. */
  private drawPoint(context: CanvasRenderingContext2D, point: Point): void {
    const { x, y } = toScreen(this.view, point);
    context.beginPath();
    context.arc(x, y, 8, 0, 2 * Math.PI);
    context.fillStyle = point.on ? ON : OFF;
    context.fill();
    context.strokeStyle = "#fff";
    context.lineWidth = 2;
    context.stroke();
    context.beginPath();
    context.moveTo(x - 4, y);
    context.lineTo(x + 4, y);
    if (point.on) {
      context.moveTo(x, y - 4);
      context.lineTo(x, y + 4);
    }
    context.stroke();
  }

  private drawCursor(context: CanvasRenderingContext2D, cursor: Place): void {
    const { x, y } = toScreen(this.view, cursor);
    for (const [color, width] of [
      ["#000", 5],
      ["#fff", 2],
    ] as const) {
      context.strokeStyle = color;
      context.lineWidth = width;
      context.beginPath();
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        context.moveTo(x + 4 * dx, y + 4 * dy);
        context.lineTo(x + 14 * dx, y + 14 * dy);
      }
      context.stroke();
    }
  }
}

/** A line that is seen on light and on dark. */
export function strokeTwice(context: CanvasRenderingContext2D): void {
  for (const [color, width] of [
    ["rgb(0 0 0 / 0.55)", 4],
    ["#ffffff", 2],
  ] as const) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.stroke();
  }
}
