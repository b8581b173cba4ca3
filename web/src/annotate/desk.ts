// The view of an image that is annotated: canvas, tools, the object at work, the list of masks.

import { enable, find, onClick, toggle } from "../dom";
import { say } from "../frame";
import { listen } from "../gestures";
import { thumbnail } from "../painting";
import type { Part } from "../painting";
import { type Scene, Stage } from "../stage";
import { RADII } from "./brush";
import { isTouched } from "./draft";
import { listenToKeys } from "./keys";
import type { Label } from "./labels";
import { Layers } from "./layers";
import { MaskList, titleOf } from "./mask_list";
import type { TaskSession } from "./task_session";
import { TOOLS, Tools } from "./tools";

const ACCENT = [67, 83, 216] as const;
const THUMBNAIL = 96;
const HINTS = {
  click: "Click to find an object, drag to draw a box. Shift or right click takes away.",
  brush: "Paint what belongs to the mask. [ and ] change the size.",
  eraser: "Wipe away what does not belong to it. [ and ] change the size.",
  polygon: "Click to add vertices, drag to move them, right click to delete one. Then add, or cut out.",
};

export class Desk {
  readonly stage = new Stage(find("stage") as HTMLCanvasElement);
  readonly tools = new Tools(this.stage, () => this.session()?.editor ?? null, () => this.update());
  readonly list: MaskList;
  private layers: Layers | null = null;
  private readonly slider = find("radius") as HTMLInputElement;
  private readonly field = find("name") as HTMLInputElement;
  private deleted: { readonly label: Label; readonly index: number } | null = null;
  private listed: unknown[] = [];
  private offered: unknown = null;

  constructor(
    private readonly session: () => TaskSession | null,
    private readonly done: () => void,
  ) {
    this.list = new MaskList(find("label-list"), () => this.session()?.labels ?? null, {
      select: (key) => this.select(key),
      accept: (key) => this.acceptProposed(key),
      remove: (key) => this.remove(key),
      leave: () => find("stage").focus({ preventScroll: true }),
      say,
    });
    listen(this.stage, this.tools.intents());
    this.listenToButtons();
    listenToKeys(this, this.session, this.done);
  }

  /** An image is on its way. */
  wait(why: string): void {
    toggle("start", false);
    toggle("work", true);
    toggle("wait", true);
    find("wait-text").textContent = why;
  }

  begin(session: TaskSession): void {
    this.layers = new Layers(session.image.size);
    this.deleted = null;
    this.listed = [];
    this.tools.reset();
    toggle("wait", false);
    find("title").textContent = `Masks of ${session.image.name}`;
    this.stage.show(this.scene(session), true);
    this.update();
    scrollTo({ top: 0 });
    find("stage").focus({ preventScroll: true });
  }

  /** No image is left, or none is open. */
  end(): void {
    this.layers = null;
    this.stage.show(null);
    toggle("work", false);
    toggle("wait", false);
    toggle("start", true);
  }

  /** Shows how things are. */
  update(): void {
    const session = this.session();
    if (!session || !this.layers) return;
    this.showTools(session);
    this.showCandidates(session);
    this.showObject(session);
    this.showLabels(session);
    this.stage.show(this.scene(session));
  }

  repaint(part: Part): void {
    const session = this.session();
    if (!session || !this.layers) return;
    this.layers.repaint(session.editor.bits, part);
    this.stage.show(this.scene(session));
  }

  accept(): void {
    const session = this.session();
    if (!session) return;
    const accepted = session.accept();
    if (!accepted) return say(session.obstacle);
    const index = session.labels.list.findIndex(({ key }) => key === accepted.key);
    this.tools.reset();
    this.deleted = null;
    say(`${titleOf(accepted, index)} accepted, ${accepted.mask.area} pixels`);
    this.update();
  }

  select(key: string | null): void {
    this.tools.reset();
    this.session()?.select(key);
    if (key !== null) say("its mask can be corrected now");
  }

  /** Lets go of the tool, clears the object, or leaves a mask as it was. */
  escape(): void {
    const { editor } = this.session() ?? {};
    if (!editor || this.tools.escape()) return;
    if (isTouched(editor.draft)) editor.clear();
    else if (this.tools.cursor) this.tools.reset();
    else this.session()?.select(null);
    editor.hover(null);
    this.update();
  }

  showHelp(): void {
    (find("help-dialog") as HTMLDialogElement).showModal();
  }

  private acceptProposed(key: string): void {
    const session = this.session();
    if (!session) return;
    if (key === session.editor.key) return this.accept();
    session.acceptProposed(key);
    say("accepted");
  }

  private acceptAll(): void {
    const count = this.session()?.acceptAllProposed() ?? 0;
    say(`${count} masks accepted`);
  }

  private remove(key: string): void {
    const session = this.session();
    const index = session?.labels.list.findIndex((label) => label.key === key) ?? -1;
    const label = session?.remove(key);
    if (!label) return;
    this.deleted = { label, index };
    find("deleted").querySelector("span")!.textContent = `${titleOf(label, index)} is deleted.`;
    say(`${titleOf(label, index)} is deleted`);
    this.update();
  }

  private undelete(): void {
    if (!this.deleted) return;
    this.session()?.restore(this.deleted.label, this.deleted.index);
    this.deleted = null;
    this.update();
  }

  private scene(session: TaskSession): Scene {
    const { editor, labels, image } = session;
    const layers: { canvas: HTMLCanvasElement; opacity: number }[] = [];
    const others = labels.list.filter(({ visible, key }) => visible && key !== editor.key);
    if (this.layers && others.length) layers.push({ canvas: this.layers.ofLabels(others), opacity: 0.75 });
    if (editor.preview) layers.push({ canvas: this.layers!.ofPreview(editor.preview), opacity: 0.7 });
    if (this.layers) layers.push({ canvas: this.layers.ofWork(editor.bits), opacity: 1 });
    const { points, box } = editor.draft.prompts;
    const mark: Scene["mark"] = (context, view) => this.tools.mark(context, view);
    const { cursor } = this.tools;
    return { image: image.bitmap, size: image.size, layers, points, box: this.tools.box ?? box, cursor, mark };
  }

  private showTools({ editor }: TaskSession): void {
    const { tools } = this;
    for (const tool of TOOLS) find(`tool-${tool}`).setAttribute("aria-pressed", String(tool === tools.tool));
    find("mode-add").setAttribute("aria-pressed", String(!tools.removing));
    find("mode-remove").setAttribute("aria-pressed", String(tools.removing));
    toggle("for-click", tools.tool === "click");
    toggle("for-brush", tools.isBrush);
    toggle("for-polygon", tools.tool === "polygon");
    enable("polygon-add", editor.draft.polygon.length > 2);
    enable("polygon-cut", editor.draft.polygon.length > 2);
    enable("undo", editor.canUndo);
    enable("redo", editor.canRedo);
    enable("clear", isTouched(editor.draft));
    this.slider.value = String(tools.size);
    this.slider.setAttribute("aria-valuetext", `${2 * tools.radius} pixels across`);
    find("radius-said").textContent = `${2 * tools.radius} px`;
    find("hint").textContent = HINTS[tools.tool];
    find("stage").classList.toggle("brushing", tools.isBrush);
  }

  private showCandidates({ editor, image }: TaskSession): void {
    const masks = editor.candidates?.masks ?? [];
    toggle("choices", masks.length > 1);
    const list = find("candidates");
    if (this.offered !== editor.candidates) {
      this.offered = editor.candidates;
      list.replaceChildren(
        ...masks.map((mask, index) => {
          const button = document.createElement("button");
          button.type = "button";
          button.setAttribute("aria-label", `Mask ${index + 1}: ${mask.area} pixels, predicted IoU ${mask.predictedIou.toFixed(2)}`);
          button.append(thumbnail(image.bitmap, mask, THUMBNAIL, ACCENT), mask.predictedIou.toFixed(2));
          button.addEventListener("click", () => this.session()?.editor.choose(index));
          return button;
        }),
      );
    }
    [...list.children].forEach((child, index) => child.setAttribute("aria-pressed", String(index === editor.choice)));
  }

  private showObject(session: TaskSession): void {
    const { label, obstacle } = session;
    const index = session.labels.list.findIndex((one) => one === label);
    find("object-title").textContent = label ? `Correct ${titleOf(label, index)}` : "New mask";
    if (this.field.value !== session.name) this.field.value = session.name;
    enable("accept", obstacle === "");
    find("latency").textContent = said(session);
  }

  private showLabels(session: TaskSession): void {
    const { labels, editor, label } = session;
    const proposed = labels.proposed.length;
    toggle("labels", labels.list.length > 0 || this.deleted !== null);
    toggle("deleted", this.deleted !== null);
    toggle("accept-all", proposed > 0);
    find("accept-all").textContent = `Accept all ${proposed} proposed`;
    const now = [labels.list, editor.key, editor.draft, session.name, label];
    if (now.every((value, index) => value === this.listed[index])) return;
    this.listed = now;
    this.list.show(editor.key, (key) => session.isUnaccepted(key));
  }

  private listenToButtons(): void {
    const { tools, stage } = this;
    for (const tool of TOOLS) onClick(`tool-${tool}`, () => tools.take(tool));
    onClick("mode-add", () => this.setRemoving(false));
    onClick("mode-remove", () => this.setRemoving(true));
    this.slider.max = String(RADII.length - 1);
    this.slider.addEventListener("input", () => tools.resize(Number(this.slider.value)));
    onClick("polygon-add", () => tools.apply(true));
    onClick("polygon-cut", () => tools.apply(false));
    onClick("undo", () => this.session()?.editor.undo());
    onClick("redo", () => this.session()?.editor.redo());
    onClick("clear", () => this.session()?.editor.clear());
    onClick("accept", () => this.accept());
    onClick("accept-all", () => this.acceptAll());
    onClick("undelete", () => this.undelete());
    onClick("zoom-in", () => stage.zoom(1.3));
    onClick("zoom-out", () => stage.zoom(1 / 1.3));
    onClick("zoom-fit", () => stage.fit());
    onClick("help", () => this.showHelp());
    this.field.addEventListener("input", () => {
      const session = this.session();
      if (session) session.name = this.field.value;
    });
  }

  private setRemoving(removing: boolean): void {
    this.tools.removing = removing;
    this.update();
  }
}

function said({ editor, image }: TaskSession): string {
  const { milliseconds } = editor;
  return milliseconds === null ? `Masks are found ${image.decodedBy}` : `Mask in ${Math.round(milliseconds)} ms ${image.decodedBy}`;
}
