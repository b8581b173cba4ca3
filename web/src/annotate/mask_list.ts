// The list of masks: one is in focus, keys go along it; mouse, touch and keys reorder it.

import type { Label, Labels } from "./labels";

export interface ListIntents {
  select(key: string): void;
  accept(key: string): void;
  remove(key: string): void;
  /** Back to the image. */
  leave(): void;
  say(what: string): void;
}

export class MaskList {
  private focused = "";
  private place = 0;
  private dragged = "";

  constructor(
    private readonly list: HTMLElement,
    private readonly labels: () => Labels | null,
    private readonly intents: ListIntents,
  ) {
    list.addEventListener("keydown", (event) => this.onKey(event));
    list.addEventListener("focusin", (event) => this.onFocus(event.target as HTMLElement));
    list.addEventListener("pointerdown", (event) => this.onPointerDown(event));
    list.addEventListener("pointermove", (event) => this.onPointerMove(event));
    for (const end of ["pointerup", "pointercancel"]) list.addEventListener(end, () => this.onPointerEnd());
  }

  /** `current`: the mask that is corrected; `unaccepted`: whether a mask has changes that nobody accepted. */
  show(current: string, unaccepted: (key: string) => boolean): void {
    const labels = this.labels()?.list ?? [];
    const inside = this.list.contains(document.activeElement);
    const part = (document.activeElement as HTMLElement | null)?.className ?? "open";
    const at = labels.findIndex(({ key }) => key === this.focused);
    // Where the one in focus is deleted, the next takes its place.
    if (at < 0) this.focused = labels[Math.min(this.place, labels.length - 1)]?.key ?? "";
    else this.place = at;
    const rows = labels.map((label, index) => this.row(label, index, label.key === current, unaccepted(label.key)));
    this.list.replaceChildren(...rows);
    if (inside) this.focus(part);
  }

  focus(part = "open", key = this.focused): void {
    this.focused = key;
    const row = [...this.list.children].find((one) => (one as HTMLElement).dataset.key === key);
    (row?.querySelector<HTMLElement>(`.${part}`) ?? row?.querySelector<HTMLElement>(".open"))?.focus();
  }

  private row(label: Label, index: number, current: boolean, unaccepted: boolean): HTMLElement {
    const row = document.createElement("li");
    const title = titleOf(label, index);
    const state = unaccepted ? "changed" : label.state === "proposed" ? "proposed" : "";
    row.dataset.key = label.key;
    row.classList.toggle("current", current);
    row.classList.toggle("proposed", label.state === "proposed");
    row.classList.toggle("hidden", !label.visible);
    const eye = this.button("eye", `${title}: shown`, label.key, () => this.labels()?.toggle(label.key));
    eye.setAttribute("aria-pressed", String(label.visible));
    const swatch = document.createElement("i");
    swatch.style.setProperty("--swatch", `rgb(${label.color.join(" ")})`);
    eye.append(swatch);
    const open = this.button("open", "", label.key, () => this.intents.select(label.key));
    if (current) open.setAttribute("aria-current", "true");
    open.append(textIn("b", title), " ", textIn("small", state), " ", textIn("span", `${label.mask.area} pixels`, "only-heard"));
    const remove = this.button("delete", `Delete ${title}`, label.key, () => this.intents.remove(label.key));
    remove.textContent = "×";
    const grip = textIn("span", "⠿", "grip");
    grip.ariaHidden = "true"; // keys reorder, too
    row.append(grip, eye, open, remove);
    return row;
  }

  private button(kind: string, name: string, key: string, act: () => void): HTMLButtonElement {
    const made = document.createElement("button");
    made.type = "button";
    made.className = kind;
    if (name) made.setAttribute("aria-label", name);
    made.tabIndex = key === this.focused ? 0 : -1;
    made.addEventListener("click", act);
    return made;
  }

  private onFocus(target: HTMLElement): void {
    this.focused = rowOf(target)?.dataset.key ?? this.focused;
    this.place = this.labels()?.list.findIndex(({ key }) => key === this.focused) ?? 0;
    for (const row of this.list.children) {
      const tabIndex = (row as HTMLElement).dataset.key === this.focused ? 0 : -1;
      for (const one of row.querySelectorAll("button")) one.tabIndex = tabIndex;
    }
  }

  private onKey(event: KeyboardEvent): void {
    const act = event.ctrlKey || event.metaKey ? undefined : this.actionOf(event);
    if (!act) return;
    event.preventDefault();
    event.stopPropagation(); // the page has other plans for these keys
    act();
  }

  private actionOf(event: KeyboardEvent): (() => void) | undefined {
    const [labels, key] = [this.labels(), this.focused];
    if (!labels || event.shiftKey) return undefined;
    const part = (event.target as HTMLElement).className;
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (by && event.altKey) return () => this.move(labels, key, by);
    if (by) return () => this.step(labels, by, part);
    return {
      Home: () => this.step(labels, -labels.list.length, part),
      End: () => this.step(labels, labels.list.length, part),
      Delete: () => this.intents.remove(key),
      Backspace: () => this.intents.remove(key),
      Escape: () => this.intents.leave(),
      a: () => this.intents.accept(key),
      v: () => labels.toggle(key),
    }[event.key];
  }

  private step(labels: Labels, by: number, part: string): void {
    const at = labels.list.findIndex(({ key }) => key === this.focused) + by;
    const next = labels.list[Math.min(Math.max(at, 0), labels.list.length - 1)];
    if (next) this.focus(part, next.key);
  }

  private move(labels: Labels, key: string, by: number): void {
    const at = labels.list.findIndex((label) => label.key === key);
    const to = Math.min(Math.max(at + by, 0), labels.list.length - 1);
    labels.moveTo(key, to);
    this.intents.say(`${titleOf(labels.list[to], to)} is number ${to + 1} of ${labels.list.length}`);
  }

  private onPointerDown(event: PointerEvent): void {
    const grip = (event.target as HTMLElement).closest(".grip");
    const row = rowOf(grip as HTMLElement | null);
    if (!row || event.button !== 0) return;
    event.preventDefault();
    this.dragged = row.dataset.key ?? "";
    row.classList.add("dragged");
    this.list.setPointerCapture(event.pointerId); // the row itself moves about
  }

  /** The row goes where the pointer is: up or down past the middle of another. */
  private onPointerMove(event: PointerEvent): void {
    const [row, { clientX, clientY }] = [this.draggedRow(), event];
    const over = row && rowOf(document.elementFromPoint(clientX, clientY) as HTMLElement | null);
    if (!row || !over || over === row || !this.list.contains(over)) return;
    const { top, height } = over.getBoundingClientRect();
    if (clientY < top + height / 2) over.before(row);
    else over.after(row);
  }

  private onPointerEnd(): void {
    const row = this.draggedRow();
    const at = row ? [...this.list.children].indexOf(row) : -1;
    const { dragged } = this;
    this.dragged = "";
    row?.classList.remove("dragged");
    if (at >= 0) this.labels()?.moveTo(dragged, at);
  }

  private draggedRow(): HTMLElement | undefined {
    return ([...this.list.children] as HTMLElement[]).find(({ dataset }) => this.dragged && dataset.key === this.dragged);
  }
}

/** What a mask is called: its name, or its place. */
export function titleOf({ name }: Label, index: number): string {
  return name ? `${index + 1}. ${name}` : `${index + 1}. Mask`;
}

function textIn(kind: string, text: string, style = ""): HTMLElement {
  const made = document.createElement(kind);
  made.textContent = text;
  made.className = style;
  return made;
}

function rowOf(element: HTMLElement | null): HTMLElement | null {
  return element?.closest?.("li") ?? null;
}
