// Shows whether what was accepted is saved, and asks what to do where the server does not take it.

import { find, onClick, toggle } from "../dom";
import { thumbnail } from "../painting";
import { maskOfSegmentation, type Segmentation } from "./engine";
import type { Outbox, SaveState } from "./saving";
import type { TaskSession } from "./task_session";

const SIDE = 128;
const [MINE, THEIRS] = [[67, 83, 216], [214, 96, 20]] as const;

export class SaveView {
  private shown: unknown = null;

  /** `reopen`: fetches the image's masks anew. */
  constructor(
    private readonly outbox: Outbox,
    private readonly session: () => TaskSession | null,
    private readonly reopen: () => void,
  ) {
    onClick("trouble-theirs", () => this.takeTheirs());
    onClick("trouble-mine", () => this.keepMine());
    onClick("save-now", () => outbox.start());
  }

  update(): void {
    const { state, warning } = this.outbox;
    const line = find("saving");
    const text = [textOf(state), warning].filter(Boolean).join("; ");
    if (line.textContent !== text) line.textContent = text; // a status is read aloud when it changes
    line.dataset.state = state.kind;
    line.classList.toggle("unsaved", state.kind === "waiting" || state.kind === "refused" || warning !== "");
    toggle("save-now", state.kind === "waiting");
    toggle("trouble", state.kind === "refused");
    if (state.kind === "refused" && this.shown !== state.write) this.showTrouble(state);
    this.shown = state.kind === "refused" ? state.write : null;
  }

  private showTrouble({ write, why, theirs }: Extract<SaveState, { kind: "refused" }>): void {
    const changed = theirs?.state === "deleted" ? "deleted" : "changed";
    find("trouble-said").textContent = theirs ? `${theirs.author ?? "Somebody"} ${changed} this mask meanwhile.` : why;
    find("trouble-theirs").textContent = theirs ? "Take theirs" : "Give it up";
    find("trouble-mine").textContent = theirs ? "Keep mine" : "Try again";
    const mine = write.body?.segmentation;
    const both: [string, Segmentation, typeof MINE | typeof THEIRS][] = [];
    if (theirs && mine) both.push(["mine", mine, MINE], ["theirs", theirs.segmentation, THEIRS]);
    find("trouble-masks").replaceChildren(...both.map(([name, segmentation, color]) => this.figure(name, segmentation, color)));
  }

  private figure(name: string, segmentation: Segmentation, color: typeof MINE | typeof THEIRS): HTMLElement {
    const [figure, caption] = [document.createElement("figure"), document.createElement("figcaption")];
    caption.textContent = name;
    const session = this.session();
    const [height, width] = session?.image.size ?? [0, 0];
    const fits = segmentation.size[0] === height && segmentation.size[1] === width;
    if (session && fits) figure.append(thumbnail(session.image.bitmap, maskOfSegmentation(segmentation, null), SIDE, color));
    figure.append(caption);
    return figure;
  }

  private takeTheirs(): void {
    const { state } = this.outbox;
    if (state.kind !== "refused") return;
    this.outbox.giveUp(state.write);
    const session = this.session();
    if (!session || session.task.task_id !== state.write.task) return;
    if (state.theirs) session.takeTheirs(state.theirs);
    else this.reopen();
  }

  private keepMine(): void {
    const { state } = this.outbox;
    if (state.kind === "refused") this.outbox.again(state.write, state.theirs?.version);
  }
}

function textOf(state: SaveState): string {
  if (state.kind === "saved") return "All is saved";
  if (state.kind === "saving") return "Saving …";
  const masks = state.count === 1 ? "One mask is not saved" : `${state.count} masks are not saved`;
  if (state.kind === "waiting") return `${masks}: ${state.why} It is tried again in ${state.seconds} s`;
  return `${masks}: ${state.why}`;
}
