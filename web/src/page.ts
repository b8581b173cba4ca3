// The page: what its buttons and keys do, and what they show.

import { DecoderChoice } from "./decoder_choice";
import { find, toggle } from "./dom";
import { askToken, fail, listenToFrame, say } from "./frame";
import { watchOffers } from "./offers";
import { OpenedImage, readImage } from "./opened_image";
import { Server } from "./server";
import { Session } from "./session";
import { Tray } from "./tray";
import { Work } from "./work";

const server = new Server(askToken);
const decoders = new DecoderChoice(server, async (decoder) => session?.use(decoder));
let session: Session | null = null;
let opening = 0;

const tray = new Tray(find("tray"), (count) => toggle("kept", count > 0), say);
const work = new Work(() => session, tray, say);

void start();

async function start(): Promise<void> {
  watchOffers((file, name) => void open(file, name), fail);
  listenToFrame();
  try {
    await decoders.choose();
    toggle("annotate", await server.hasEngine());
  } catch (error) {
    fail(error);
  }
}

async function open(file: Blob, name: string): Promise<void> {
  const [number, start] = [++opening, performance.now()];
  toggle("error", false);
  try {
    const bitmap = await readImage(file, name);
    session?.close();
    session = null;
    const used = decoders.now;
    work.wait("Looking at the image …", bitmap);
    const opened = new Session(await OpenedImage.open(file, name, bitmap, server, used), () => work.update(), fail);
    if (number !== opening) return opened.close();
    session = opened;
    tray.reset(name, opened.size);
    work.begin(name, performance.now() - start);
    if (decoders.now !== used) await opened.use(await decoders.now); // it became ready meanwhile
    void decoders.tryGpu(opened.image);
  } catch (error) {
    if (number !== opening) return;
    work.end();
    fail(error);
  }
}
