// The page: what its buttons and keys do, and what they show.

import { LocalDecoder, RemoteDecoder, type Decoder } from "./decoders";
import { watchOffers } from "./offers";
import { Server } from "./server";
import { Session } from "./session";
import { Tray } from "./tray";
import { find, toggle } from "./dom";
import { Work } from "./work";

const server = new Server(askToken);
const remote = new RemoteDecoder(server);
let decoder: Promise<Decoder> = Promise.resolve(remote);
let session: Session | null = null;
let opening = 0;

const tray = new Tray(find("tray"), (count) => toggle("kept", count > 0), say);
const work = new Work(() => session, tray, say);

void start();

async function start(): Promise<void> {
  watchOffers((file, name) => void open(file, name), fail);
  find("error").querySelector("button")?.addEventListener("click", () => toggle("error", false));
  find("theme").addEventListener("click", switchTheme);
  try {
    await chooseDecoder();
  } catch (error) {
    fail(error);
  }
}

/** The page decodes itself where the server has the file; until then, and otherwise, the server does. */
async function chooseDecoder(): Promise<void> {
  const model = await server.model();
  find("model").textContent = model.name;
  if (model.onnx === "being made") {
    setTimeout(() => void chooseDecoder().catch(fail), 10_000);
    return;
  }
  if (model.onnx !== "ready") return;
  const local = LocalDecoder.load(server, model);
  decoder = local.catch((error) => {
    fail(new Error(`the decoder does not run in this browser, so the server decodes (${reason(error)})`));
    return remote;
  });
  const ready = await decoder;
  document.documentElement.dataset.decoder = ready.place;
  const now = session;
  if (now) await now.use(ready);
}

async function open(file: Blob, name: string): Promise<void> {
  const [number, start] = [++opening, performance.now()];
  toggle("error", false);
  try {
    const bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" }).catch(() => {
      throw new Error(`${name} is not an image that this browser can show; try JPEG or PNG`);
    });
    session?.close();
    session = null;
    const used = decoder;
    work.wait("Looking at the image …", bitmap);
    const opened = await Session.open(file, name, bitmap, server, used, () => work.update(), fail);
    if (number !== opening) return opened.close();
    session = opened;
    tray.reset(name, opened.size);
    work.begin(name, performance.now() - start);
    if (decoder !== used) await opened.use(await decoder); // it became ready meanwhile
  } catch (error) {
    if (number !== opening) return;
    work.end();
    fail(error);
  }
}

function switchTheme(): void {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
}

function askToken(): Promise<string | null> {
  const dialog = find("token-dialog") as HTMLDialogElement;
  const field = find("token") as HTMLInputElement;
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "given" ? field.value : null), { once: true }),
  );
}

function say(what: string): void {
  find("said").textContent = what;
}

function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function fail(error: unknown): void {
  find("error").querySelector("span")!.textContent = reason(error);
  toggle("error", true);
}
