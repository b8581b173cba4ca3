// The view of an image at work: canvas, tools and keys. It shows what the session says and tells it what users do.

import { enable, find, onClick, toggle } from "./dom";
import { type Place, boxBetween, clamped } from "./geometry";
import { listen } from "./gestures";
import { type Mask, bitsOf } from "./masks";
import { colored, layerOf, thumbnail, tinted } from "./painting";
import { type Box, isEmpty } from "./prompts";
import type { Progress } from "./server";
import type { Session } from "./session";
import { type Scene, Stage } from "./stage";
import type { Tray } from "./tray";

const ACCENT = [67, 83, 216] as const;
const THUMBNAIL = 96;
const CURSOR_STEP = 12; // pixels of the screen
const MOST_LAYERS = 4;

export class Work {
  private readonly stage = new Stage(find("stage") as HTMLCanvasElement);
  private readonly layers = new Map<object, HTMLCanvasElement>();
  private readonly help = find("help-dialog") as HTMLDialogElement;
  private drawn: Box | null = null;
  private cursor: Place | null = null;
  private corner: Place | null = null;
  private removing = false;
  private shown: unknown = null;
  private encoding = "";

  constructor(
    private readonly session: () => Session | null,
    private readonly tray: Tray,
    private readonly say: (what: string) => void,
  ) {
    listen(this.stage, {
      size: () => this.session()?.size ?? null,
      hover: (place) => this.session()?.hover(place),
      click: (place, remove) => this.click(place, remove !== this.removing),
      drawing: (box) => this.draw(box),
      box: (box) => this.session()?.setBox(box),
      step: (direction) => this.session()?.stepBySize(direction),
    });
    this.listenToButtons();
    addEventListener("keydown", (event) => this.onKey(event));
  }

  /** An image is on its way. */
  wait(why: string, image: ImageBitmap): void {
    this.drawn = this.cursor = this.corner = null;
    this.layers.clear();
    toggle("start", false);
    toggle("work", true);
    toggle("open-another", true);
    toggle("wait", true);
    find("latency").textContent = "";
    find("latency").dataset.milliseconds = "";
    find("wait-text").textContent = why;
    this.stage.show({ image, size: [image.height, image.width], layers: [], points: [], box: null, cursor: null }, true);
  }

  begin(name: string, milliseconds: number): void {
    find("title").textContent = `Masks of ${name}`;
    toggle("wait", false);
    this.encoding = `Image ready in ${seconds(milliseconds)}`;
    find("stage").focus({ preventScroll: true });
    this.say("the image is ready");
    this.update();
  }

  /** Back to the start. */
  end(): void {
    toggle("work", false);
    toggle("open-another", false);
    toggle("wait", false);
    toggle("start", true);
  }

  /** Shows how things are. */
  update(): void {
    const session = this.session();
    if (!session) return;
    const { mask, candidates, everything } = session;
    enable("undo", session.canUndo);
    enable("redo", session.canRedo);
    enable("clear", mask !== null || !isEmpty(session.prompts));
    enable("keep", mask !== null && mask.area > 0);
    toggle("choices", (candidates?.masks.length ?? 0) > 1);
    toggle("progress", session.isRunning);
    enable("everything", !session.isRunning);
    enable("find-text", !session.isRunning);
    find("everything").textContent = everything ? (session.named ? "Hide what is found" : "Hide everything") : "Find everything";
    toggle("everything-said", everything !== null);
    find("everything-said").textContent = `${this.counts(session)}. Click one; wheel or ↑ ↓ for larger and smaller.`;
    find("latency").textContent = this.latency(session);
    if (session.milliseconds !== null) find("latency").dataset.milliseconds = session.milliseconds.toFixed(1);
    this.showCandidates(session);
    this.tell(mask);
    this.stage.show(this.scene(session));
  }

  private counts({ everything, named }: Session): string {
    const of = (count: number) => `${count} ${count === 1 ? "mask" : "masks"}`;
    return named ? named.map(({ phrase, count }) => `${phrase}: ${of(count)}`).join(", ") : of(everything?.length ?? 0);
  }

  private latency({ milliseconds, decodedBy }: Session): string {
    const mask = milliseconds === null ? "" : ` · mask in ${Math.round(milliseconds)} ms ${decodedBy}`;
    return this.encoding + mask;
  }

  private tell(mask: Mask | null): void {
    if (mask === this.shown) return;
    this.shown = mask;
    if (mask) this.say(`mask of ${mask.area} pixels, predicted IoU ${mask.predictedIou.toFixed(2)}`);
  }

  private scene(session: Session): Scene {
    const layers: { canvas: HTMLCanvasElement; opacity: number }[] = [];
    const { mask, everything, highlighted, preview } = session;
    if (everything) {
      const canvas = this.layer(everything, () => colored(everything, session.size));
      layers.push({ canvas, opacity: mask || highlighted ? 0.35 : 1 });
      if (highlighted && highlighted !== mask) layers.push({ canvas: this.maskLayer(highlighted), opacity: 0.7 });
    }
    if (preview) layers.push({ canvas: this.layer(preview, () => tinted(preview.bits, preview.size, ACCENT)), opacity: 0.7 });
    if (mask) layers.push({ canvas: this.maskLayer(mask), opacity: 1 });
    const { points, box } = session.prompts;
    const drawn = this.drawn ?? (this.corner && this.cursor ? boxBetween(this.corner, this.cursor, session.size) : null);
    return { image: session.bitmap, size: session.size, layers, points, box: drawn ?? box, cursor: this.cursor };
  }

  private maskLayer(mask: Mask): HTMLCanvasElement {
    return this.layer(mask, () => tinted(bitsOf(mask), mask.size, ACCENT));
  }

  /** Layers are as large as images: the last few are kept. */
  private layer(of: object, paint: () => ImageData): HTMLCanvasElement {
    const layer = this.layers.get(of) ?? layerOf(paint());
    this.layers.delete(of);
    this.layers.set(of, layer);
    for (const oldest of [...this.layers.keys()].slice(0, -MOST_LAYERS)) this.layers.delete(oldest);
    return layer;
  }

  private draw(box: Box | null): void {
    if (box === this.drawn) return;
    this.drawn = box;
    const session = this.session();
    if (session) this.stage.show(this.scene(session));
  }

  private click(place: Place, remove: boolean): void {
    this.cursor = null;
    this.session()?.addPoint(place, !remove);
  }

  private showCandidates(session: Session): void {
    const list = find("candidates");
    const masks = session.candidates?.masks ?? [];
    if (list.dataset.of !== String(this.numberOf(session.candidates))) {
      list.dataset.of = String(this.numberOf(session.candidates));
      list.replaceChildren(...masks.map((mask, index) => this.candidate(session, mask, index)));
    }
    [...list.children].forEach((child, index) => child.setAttribute("aria-pressed", String(index === session.choice)));
  }

  private readonly numbers = new WeakMap<object, number>();
  private counted = 0;

  private numberOf(thing: object | null): number {
    if (!thing) return 0;
    if (!this.numbers.has(thing)) this.numbers.set(thing, ++this.counted);
    return this.numbers.get(thing) ?? 0;
  }

  private candidate(session: Session, mask: Mask, index: number): HTMLElement {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `Mask ${index + 1}: ${mask.area} pixels, predicted IoU ${mask.predictedIou.toFixed(2)}`);
    button.append(thumbnail(session.bitmap, mask, THUMBNAIL, ACCENT), mask.predictedIou.toFixed(2));
    button.addEventListener("click", () => session.choose(index));
    return button;
  }

  private listenToButtons(): void {
    onClick("undo", () => this.session()?.undo());
    onClick("redo", () => this.session()?.redo());
    onClick("clear", () => this.session()?.clear());
    onClick("keep", () => this.keep());
    onClick("everything", () => void this.everything());
    find("text").addEventListener("submit", (event) => {
      event.preventDefault();
      void this.named();
    });
    onClick("cancel", () => this.session()?.cancel());
    onClick("zoom-in", () => this.stage.zoom(1.3));
    onClick("zoom-out", () => this.stage.zoom(1 / 1.3));
    onClick("zoom-fit", () => this.stage.fit());
    onClick("save-coco", () => this.tray.saveCoco());
    onClick("save-sa1b", () => this.tray.saveSa1b());
    onClick("help", () => this.help.showModal());
    onClick("mode-add", () => this.setRemoving(false));
    onClick("mode-remove", () => this.setRemoving(true));
  }

  private setRemoving(removing: boolean): void {
    this.removing = removing;
    find("mode-add").setAttribute("aria-pressed", String(!removing));
    find("mode-remove").setAttribute("aria-pressed", String(removing));
  }

  private keep(): void {
    const session = this.session();
    if (!session?.mask) return;
    this.tray.keep(session.bitmap, session.mask);
    session.clear();
  }

  private async everything(): Promise<void> {
    const session = this.session();
    if (!session || session.isRunning) return;
    if (session.everything) return session.hideEverything();
    await this.watched((finest, onProgress) => session.findEverything(finest, onProgress));
  }

  private async named(): Promise<void> {
    const session = this.session();
    const phrases = (find("phrases") as HTMLInputElement).value.split(",").map((phrase) => phrase.trim()).filter(Boolean);
    if (!session || session.isRunning || !phrases.length) return;
    await this.watched((finest, onProgress) => session.findNamed([...new Set(phrases)], finest, onProgress));
  }

  private async watched(search: (finest: number, onProgress: (progress: Progress) => void) => Promise<void>): Promise<void> {
    const bar = find("progress").querySelector("progress")!;
    bar.removeAttribute("value"); // not known yet
    const finest = Number((find("density") as HTMLSelectElement).value);
    await search(finest, ({ done, total }) => {
      bar.value = done / total;
    });
    if (!find("everything-said").hidden) this.say(find("everything-said").textContent ?? "");
  }

  private onKey(event: KeyboardEvent): void {
    const session = this.session();
    const inField = event.target instanceof HTMLSelectElement || event.target instanceof HTMLInputElement;
    if (!session || inField || document.querySelector("dialog[open]")) return;
    const act = this.actionOf(event, session);
    if (!act) return;
    event.preventDefault();
    act();
  }

  private actionOf(event: KeyboardEvent, session: Session): (() => void) | undefined {
    const key = event.key.toLowerCase();
    const control = event.ctrlKey || event.metaKey;
    const arrow = ARROWS[event.key];
    if (arrow && event.shiftKey) return () => this.moveCursor(session, arrow, control);
    if (control) {
      if (key === "z") return () => (event.shiftKey ? session.redo() : session.undo());
      return key === "y" ? () => session.redo() : undefined;
    }
    if (event.altKey) return undefined;
    if (event.target === this.stage.canvas) {
      if (key === "arrowup" || key === "arrowdown") return () => session.stepBySize(key === "arrowup" ? 1 : -1);
      const place = this.cursor;
      if (key === "enter" && place) return () => session.addPoint(place, !this.removing);
      if (key === " ") return () => undefined; // held, it lets the mouse move the image
    }
    if (/^[1-9]$/.test(key)) return () => session.choose(Number(key) - 1);
    return {
      x: () => this.cursor && session.addPoint(this.cursor, false),
      b: () => this.setCorner(session),
      k: () => this.keep(),
      e: () => void this.everything(),
      t: () => find("phrases").focus(),
      escape: () => this.escape(session),
      "+": () => this.stage.zoom(1.3),
      "=": () => this.stage.zoom(1.3),
      "-": () => this.stage.zoom(1 / 1.3),
      "0": () => this.stage.fit(),
      a: () => this.stage.actualSize(),
      "?": () => this.help.showModal(),
    }[key];
  }

  private escape(session: Session): void {
    if (this.corner) this.corner = null;
    else if (session.isRunning) return session.cancel();
    else if (this.cursor && isEmpty(session.prompts) && !session.mask) this.cursor = null;
    else return session.clear();
    session.hover(null);
    this.update();
  }

  private moveCursor(session: Session, [dx, dy]: readonly [number, number], fine: boolean): void {
    const step = fine ? 1 : CURSOR_STEP / this.stage.view.scale;
    const [height, width] = session.size;
    const from = this.cursor ?? { x: width / 2, y: height / 2 };
    this.cursor = clamped({ x: from.x + dx * step, y: from.y + dy * step }, session.size);
    session.hover(this.cursor);
    this.update();
  }

  private setCorner(session: Session): void {
    if (!this.cursor) return;
    const box = this.corner && boxBetween(this.corner, this.cursor, session.size);
    this.corner = this.corner ? null : this.cursor;
    if (box) session.setBox(box);
    this.update();
  }
}

const ARROWS: Record<string, readonly [number, number]> = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
};

function seconds(milliseconds: number): string {
  return `${(milliseconds / 1000).toFixed(1)} s`;
}
