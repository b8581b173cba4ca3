// The ways an image comes in: chosen, dropped, pasted, or one of the samples.

import { find, onClick } from "./dom";

export function watchOffers(open: (file: Blob, name: string) => void, fail: (error: unknown) => void): void {
  const input = find("file") as HTMLInputElement;
  const take = (files: FileList | null | undefined) => {
    const file = files?.[0];
    if (file) open(file, file.name);
  };
  input.addEventListener("change", () => {
    take(input.files);
    input.value = ""; // the same file may be chosen again
  });
  onClick("open-another", () => input.click());
  addEventListener("paste", (event) => take(event.clipboardData?.files));

  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    take(event.dataTransfer?.files);
  });

  for (const sample of document.querySelectorAll<HTMLElement>("[data-sample]")) {
    const name = sample.dataset.sample ?? "";
    sample.addEventListener("click", async () => {
      try {
        open(await (await fetch(`samples/${name}`)).blob(), name);
      } catch {
        fail(new Error("the server cannot be reached; is it still running?"));
      }
    });
  }
}
