// Objects that a user keeps: cut-outs to download or copy, and all of them as JSON.

import { cocoFile, sa1bFile, save, saveJson, stem } from "./files";
import type { Mask } from "./masks";
import { cutOut } from "./painting";

interface Kept {
  readonly mask: Mask;
  readonly canvas: HTMLCanvasElement;
  readonly file: string;
}

export class Tray {
  private kept: Kept[] = [];
  private name = "image";
  private size: readonly [number, number] = [0, 0];
  private number = 0;

  constructor(
    private readonly list: HTMLElement,
    private readonly onChange: (count: number) => void,
    private readonly say: (what: string) => void,
  ) {}

  /** Empties it, for an image. */
  reset(name: string, size: readonly [number, number]): void {
    [this.kept, this.name, this.size, this.number] = [[], name, size, 0];
    this.list.replaceChildren();
    this.onChange(0);
  }

  keep(image: ImageBitmap, mask: Mask): void {
    if (!mask.area || this.kept.some((one) => one.mask === mask)) return;
    const one = { mask, canvas: cutOut(image, mask), file: `${stem(this.name)}_cutout_${++this.number}.png` };
    this.kept.push(one);
    this.list.append(this.card(one));
    this.onChange(this.kept.length);
    this.say(`cut-out ${this.number} kept, ${mask.bbox[2]} by ${mask.bbox[3]} pixels`);
  }

  saveCoco(): void {
    saveJson(cocoFile(this.about(), this.masks()), `${stem(this.name)}.coco.json`);
  }

  saveSa1b(): void {
    saveJson(sa1bFile(this.about(), this.masks()), `${stem(this.name)}.json`);
  }

  private about() {
    return { name: this.name, width: this.size[1], height: this.size[0] };
  }

  private masks(): Mask[] {
    return this.kept.map(({ mask }) => mask);
  }

  private card(one: Kept): HTMLElement {
    const card = document.createElement("li");
    const [, , width, height] = one.mask.bbox;
    one.canvas.setAttribute("role", "img");
    one.canvas.setAttribute("aria-label", `${one.file}: ${width} by ${height} pixels`);
    const actions = document.createElement("div");
    actions.append(
      button("Download", `Download ${one.file}`, () => void this.download(one)),
      button("Copy", `Copy ${one.file}`, () => void this.copy(one)),
      button("Remove", `Remove ${one.file}`, () => this.remove(one, card)),
    );
    card.append(one.canvas, actions);
    return card;
  }

  private async download({ canvas, file }: Kept): Promise<void> {
    save(await pngOf(canvas), file);
  }

  private async copy({ canvas, file }: Kept): Promise<void> {
    try {
      await navigator.clipboard.write([new ClipboardItem({ "image/png": pngOf(canvas) })]);
      this.say(`${file} copied`);
    } catch {
      this.say("this browser does not let the page copy images; download the cut-out instead");
    }
  }

  private remove(one: Kept, card: HTMLElement): void {
    this.kept = this.kept.filter((other) => other !== one);
    card.remove();
    this.onChange(this.kept.length);
  }
}

function button(text: string, label: string, act: () => void): HTMLButtonElement {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}

function pngOf(canvas: HTMLCanvasElement): Promise<Blob> {
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the cut-out is too large for this browser"))), "image/png"),
  );
}
