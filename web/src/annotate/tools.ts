// The tools in a hand: what presses, drags and keys on the image do with each of them.

import { type Place, type View, boxBetween, clamped } from "../geometry";
import type { Grab, Intents } from "../gestures";
import type { Box } from "../prompts";
import type { Stage } from "../stage";
import { RADII, rounded } from "./brush";
import { applyPolygon } from "./draft";
import type { Editor } from "./editor";
import { drawPolygon, drawRing } from "./marks";
import { nearestVertex, withVertex, withoutVertex } from "./polygon";

export type Tool = "click" | "brush" | "eraser" | "polygon";
export const TOOLS: readonly Tool[] = ["click", "brush", "eraser", "polygon"];

const CURSOR_STEP = 12; // pixels of the screen
const NEAR = 10;

export class Tools {
  tool: Tool = "click";
  /** The click tool takes away. */
  removing = false;
  size = RADII.indexOf(12);
  /** Of the keyboard. */
  cursor: Place | null = null;
  drawn: Box | null = null;
  private corner: Place | null = null;
  private pointer: Place | null = null;
  /** A vertex that is moved; its index may be one beyond the last, for a new one. */
  private held: { readonly index: number; readonly place: Place } | null = null;

  constructor(
    private readonly stage: Stage,
    private readonly editor: () => Editor | null,
    private readonly onChange: () => void,
  ) {}

  get radius(): number {
    return RADII[this.size];
  }

  get isBrush(): boolean {
    return this.tool === "brush" || this.tool === "eraser";
  }

  intents(): Intents {
    return {
      size: () => this.editor()?.size ?? null,
      hover: (place) => this.hover(place),
      click: (place, remove) => this.click(place, remove),
      drawing: (box) => this.drawBox(box),
      box: (box) => this.editor()?.setBox(box, !this.removing),
      step: (direction) => this.step(direction),
      grab: (place, remove) => this.grab(place, remove),
    };
  }

  /** Of another image, or another object. */
  reset(): void {
    this.cursor = this.corner = this.pointer = this.held = this.drawn = null;
  }

  take(tool: Tool): void {
    this.drop();
    this.tool = tool;
    this.editor()?.hover(null);
    this.onChange();
  }

  resize(size: number): void {
    this.size = Math.min(Math.max(size, 0), RADII.length - 1);
    this.onChange();
  }

  step(direction: 1 | -1): void {
    if (this.isBrush) this.resize(this.size + direction);
    else this.editor()?.stepBySize(direction);
  }

  /** Space, or X to take away: uses the tool at the keyboard's cursor. */
  act(remove: boolean): void {
    const [editor, at] = [this.editor(), this.cursor];
    if (!editor || !at) return;
    if (this.isBrush) return editor.isDrawing ? editor.endStroke() : editor.beginStroke(at, this.radius, this.paints(remove));
    if (this.tool === "click") return editor.addPoint(at, !(remove || this.removing));
    if (this.held) return this.drop(true);
    const near = this.vertexAt(at);
    this.held = { index: near < 0 ? editor.draft.polygon.length : near, place: at };
    if (near < 0) this.drop(true);
    this.onChange();
  }

  moveCursor([dx, dy]: readonly [number, number], fine: boolean): void {
    const editor = this.editor();
    if (!editor) return;
    const step = fine ? 1 : CURSOR_STEP / this.stage.view.scale;
    const [height, width] = editor.size;
    const from = this.cursor ?? { x: width / 2, y: height / 2 };
    const to = clamped({ x: from.x + dx * step, y: from.y + dy * step }, editor.size);
    this.cursor = to;
    if (this.held) this.held = { ...this.held, place: to };
    if (editor.isDrawing) editor.drawTo([to]);
    if (this.tool === "click") editor.hover(to);
    this.onChange();
  }

  /** The first time a corner of a box, the second time the box. */
  setCorner(): void {
    const editor = this.editor();
    if (!editor || !this.cursor) return;
    const box = this.corner && boxBetween(this.corner, this.cursor, editor.size);
    this.corner = this.corner ? null : this.cursor;
    if (box) editor.setBox(box, !this.removing);
    this.onChange();
  }

  apply(on: boolean): void {
    const editor = this.editor();
    this.drop();
    if (editor) editor.go(applyPolygon(editor.draft, on));
  }

  deleteVertex(at: Place | null = this.cursor): void {
    const editor = this.editor();
    if (!editor?.draft.polygon.length) return;
    const near = at ? this.vertexAt(at) : -1;
    this.held = null;
    const index = near < 0 ? editor.draft.polygon.length - 1 : near;
    editor.go({ ...editor.draft, polygon: withoutVertex(editor.draft.polygon, index) });
  }

  /** Lets go of what is in the hand; false where it is empty. */
  escape(): boolean {
    const editor = this.editor();
    if (this.corner) this.corner = null;
    else if (this.held) this.held = null;
    else if (editor?.isDrawing) editor.endStroke(false);
    else return false;
    this.onChange();
    return true;
  }

  /** The box that is drawn, by the mouse or from corner to cursor. */
  get box(): Box | null {
    const size = this.editor()?.size;
    return this.drawn ?? (this.corner && this.cursor && size ? boxBetween(this.corner, this.cursor, size) : null);
  }

  mark(context: CanvasRenderingContext2D, view: View): void {
    const editor = this.editor();
    if (!editor) return;
    const polygon = this.polygon(editor);
    const at = this.pointer ?? this.cursor;
    if (polygon.length > 0) drawPolygon(context, view, polygon, this.held?.index ?? (at ? this.vertexAt(at) : -1));
    if (this.isBrush && at) drawRing(context, view, at, this.radius);
  }

  private polygon({ draft }: Editor): readonly Place[] {
    if (!this.held) return draft.polygon;
    const { index, place } = this.held;
    return index < draft.polygon.length ? withVertex(draft.polygon, index, place) : [...draft.polygon, place];
  }

  private hover(place: Place | null): void {
    this.pointer = place;
    if (this.tool === "click") this.editor()?.hover(place);
    this.onChange();
  }

  private click(place: Place, remove: boolean): void {
    this.cursor = null;
    if (this.tool === "click") this.editor()?.addPoint(place, remove === this.removing);
    else if (this.tool === "polygon" && remove && this.vertexAt(place) >= 0) this.deleteVertex(place);
  }

  private drawBox(box: Box | null): void {
    if (box === this.drawn) return;
    this.drawn = box;
    this.onChange();
  }

  private grab(place: Place, remove: boolean): Grab | null {
    this.cursor = null;
    const editor = this.editor();
    if (!editor || this.tool === "click" || (this.tool === "polygon" && remove)) return null;
    return this.isBrush ? this.grabBrush(editor, place, remove) : this.grabVertex(editor, place);
  }

  private grabBrush(editor: Editor, place: Place, remove: boolean): Grab {
    this.pointer = place;
    editor.beginStroke(place, this.radius, this.paints(remove));
    return {
      move: (places) => {
        this.pointer = places[places.length - 1];
        editor.drawTo(places);
        this.onChange();
      },
      end: (keep) => editor.endStroke(keep),
    };
  }

  /** The vertex there, or a new one; the first one, pressed alone, closes the polygon. */
  private grabVertex(editor: Editor, place: Place): Grab {
    const near = this.vertexAt(place);
    let moved = false;
    this.held = { index: near < 0 ? editor.draft.polygon.length : near, place: near < 0 ? place : editor.draft.polygon[near] };
    this.onChange();
    return {
      move: (places) => {
        const to = places[places.length - 1];
        moved ||= Math.hypot(to.x - place.x, to.y - place.y) * this.stage.view.scale > NEAR / 2;
        if (this.held && (moved || near < 0)) this.held = { ...this.held, place: to };
        this.pointer = to;
        this.onChange();
      },
      end: (keep) => {
        if (keep && near === 0 && !moved && editor.draft.polygon.length > 2) this.apply(true);
        else this.drop(keep && (moved || near < 0));
      },
    };
  }

  /** Puts a held vertex down where it is, or back. */
  private drop(keep = false): void {
    const editor = this.editor();
    const { held } = this;
    if (!held || !editor) return;
    this.held = { ...held, place: rounded(held.place) };
    const polygon = this.polygon(editor);
    this.held = null;
    if (keep) editor.go({ ...editor.draft, polygon });
    else this.onChange();
  }

  private paints(remove: boolean): boolean {
    return (this.tool === "brush") !== remove;
  }

  private vertexAt(place: Place): number {
    const vertices = this.editor()?.draft.polygon ?? [];
    return nearestVertex(vertices, place, NEAR / this.stage.view.scale);
  }
}
