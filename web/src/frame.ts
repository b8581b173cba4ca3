// What is around the work, on every page: messages, colours, the question for a token.

import { find, toggle } from "./dom";

export function listenToFrame(): void {
  find("error").querySelector("button")?.addEventListener("click", () => toggle("error", false));
  find("theme").addEventListener("click", switchTheme);
}

export function say(what: string): void {
  find("said").textContent = what;
}

export function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

export function fail(error: unknown): void {
  find("error").querySelector("span")!.textContent = reasonOf(error);
  toggle("error", true);
}

export function askToken(): Promise<string | null> {
  return ask("token-dialog", "token");
}

/** What a user writes into the field of a dialog; null where it is closed without. */
export function ask(dialogId: string, fieldId: string, before = ""): Promise<string | null> {
  const dialog = find(dialogId) as HTMLDialogElement;
  const field = find(fieldId) as HTMLInputElement;
  field.value = before;
  dialog.returnValue = "";
  // No submit button: Enter would press the first one.
  (dialog.querySelector(".cancel") as HTMLElement).onclick = () => dialog.close();
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "given" ? field.value : null), { once: true }),
  );
}

function switchTheme(): void {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
}
