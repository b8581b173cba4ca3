// Elements by id.

export function find(id: string): HTMLElement {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found;
}

export function toggle(id: string, shown: boolean): void {
  find(id).hidden = !shown;
}

export function enable(id: string, enabled: boolean): void {
  (find(id) as HTMLButtonElement).disabled = !enabled;
}

export function onClick(id: string, act: () => void): void {
  find(id).addEventListener("click", act);
}
