// The page for annotators: one image after the other, each mask saved when it is accepted.

import { DecoderChoice } from "../decoder_choice";
import { find, onClick, toggle } from "../dom";
import { ask, askToken, fail, listenToFrame, reasonOf, say } from "../frame";
import { OpenedImage, readImage } from "../opened_image";
import type { Part } from "../painting";
import { Server, ServerError } from "../server";
import { Desk } from "./desk";
import { Engine, type EngineInfo } from "./engine";
import { SaveView } from "./save_view";
import { Outbox } from "./saving";
import { TaskSession } from "./task_session";
import { watchTime } from "./watch_time";

const NAME = "sam_jax.annotator";
const MOST_PASSED = 1000;
const REFRESH = 1000; // milliseconds

const server = new Server(askToken);
const engine = new Engine(server);
const decoders = new DecoderChoice(server, async (decoder) => session?.image.use(decoder));
const outbox = new Outbox(localStorage, {
  send: (write, version) => engine.deliver(write, version),
  later: (milliseconds, act) => setTimeout(act, milliseconds),
});
let session: TaskSession | null = null;
let busy = false;
let refreshing = false;
/** Ids of images that were skipped, and shall not come again at once. */
const passed: number[] = [];
let warned = "";
let renewing: ReturnType<typeof setInterval> | undefined;

const desk = new Desk(() => session, () => void leave("done"));
const saves = new SaveView(outbox, () => session, () => void open());
const time = watchTime(() => session);

void start();

async function start(): Promise<void> {
  listenToFrame();
  outbox.onChange = () => saves.update();
  outbox.onSaved = (write, mask) => {
    session?.saved(write, mask);
    void refresh();
  };
  addEventListener("online", () => outbox.start());
  addEventListener("beforeunload", (event) => {
    if (outbox.warning && outbox.state.kind !== "saved") event.preventDefault();
  });
  onClick("begin", () => void begin());
  onClick("annotator", () => void rename());
  onClick("done", () => void leave("done"));
  onClick("skip", () => void leave("release"));
  saves.update();
  try {
    await decoders.choose();
    show(await engine.info());
  } catch (error) {
    const none = error instanceof ServerError && error.status === 404;
    return rest("No images here", none ? "This server has no images to annotate: sam-jax engine serve starts one that has." : reasonOf(error));
  }
  outbox.start();
  await begin();
}

function annotator(): string {
  return localStorage.getItem(NAME) ?? "";
}

async function begin(): Promise<void> {
  if (annotator() || (await rename())) await open();
  else toggle("begin", true);
}

/** Whether there is a name now. Another name is another annotator: he gets an image of his own. */
async function rename(): Promise<boolean> {
  const before = annotator();
  const name = (await ask("name-dialog", "annotator-name", before))?.trim();
  if (!name || name === before) return Boolean(before);
  if (session && !(await leave("release", false))) return true;
  localStorage.setItem(NAME, name);
  if (before) await open();
  return true;
}

/** The next image: the one that was begun, if there is one. */
async function open(): Promise<void> {
  close(false);
  desk.wait("Fetching an image …");
  find("annotator").textContent = annotator();
  toggle("annotator", true);
  try {
    const writes = outbox.pending;
    const task = await engine.next(annotator(), passed.slice(-MOST_PASSED));
    if (!task) return restAtTheEnd();
    const { file_name: name, id } = task.image;
    const file = await engine.file(id);
    const bitmap = await readImage(file, name);
    desk.wait("Looking at the image …");
    const used = decoders.now;
    const image = await OpenedImage.open(file, name, bitmap, server, used);
    if (decoders.now !== used) await image.use(await decoders.now);
    const watch = { onChange: () => desk.update(), onPaint: (part: Part) => desk.repaint(part), onError: fail };
    session = new TaskSession(task, image, annotator(), outbox, localStorage, watch, writes);
    const seconds = task.lease_seconds / 3;
    renewing = setInterval(() => void renew(), 1000 * seconds);
    desk.begin(session);
    void decoders.tryGpu(image);
    say(`${name}, ${task.masks.length} masks so far`);
    show(await engine.info());
  } catch (error) {
    if (session) return fail(error);
    rest("No image", reasonOf(error));
  }
}

/** Ends the work on an image, once all is saved, and goes to the next. Gives whether it is ended. */
async function leave(how: "done" | "release", onwards = true): Promise<boolean> {
  const now = session;
  if (!now || busy) return false;
  const { task, imageTimer, labels } = now;
  if (how === "done" && isUnfinished(now)) return false;
  busy = true;
  try {
    say("saving");
    await outbox.drained(task.task_id);
    const order = labels.list.filter(({ state }) => state === "accepted").map(({ key }) => key);
    if (how === "done") show(await engine.finish(task.task_id, now.annotator, Math.round(10 * imageTimer.seconds) / 10, order));
    else await engine.release(task.task_id, now.annotator);
    if (how === "release") passed.push(task.image.id);
    close(how === "done");
  } catch (error) {
    fail(error);
    return false;
  } finally {
    busy = false;
  }
  if (onwards) await open();
  return true;
}

/** What is not decided yet is asked about once. */
function isUnfinished({ unaccepted, labels, task, editor }: TaskSession): boolean {
  const proposed = labels.proposed.length;
  const left = [unaccepted && "a mask that is not accepted", proposed && `${proposed} proposed masks, neither accepted nor deleted`];
  const what = left.filter(Boolean).join(" and ");
  const now = `${task.task_id}, ${what}, ${editor.key}`;
  if (!what || warned === now) return false;
  warned = now;
  fail(new Error(`There is ${what}. Done once more leaves it.`));
  return true;
}

function close(ended: boolean): void {
  clearInterval(renewing);
  toggle("error", false);
  session?.close(ended);
  session = null;
}

async function renew(): Promise<void> {
  try {
    if (session) await engine.renew(session.task.task_id, session.annotator);
  } catch (error) {
    // Where the server is away, saving says so.
    if (error instanceof ServerError && error.status === 409) fail(error);
  }
}

function restAtTheEnd(): void {
  const skipped = passed.splice(0).length;
  if (skipped > 0) rest("No other images are left", "Those that you skipped may be.");
  else rest("All images are done", "Thank you. There is nothing left to annotate for now.");
}

function rest(title: string, why: string): void {
  desk.end();
  find("start-title").textContent = title;
  find("start-said").textContent = why;
  find("begin").textContent = "Look again";
  toggle("begin", true);
}

/** The figures, a moment after masks were saved. */
async function refresh(): Promise<void> {
  if (refreshing) return;
  refreshing = true;
  await new Promise((resolve) => setTimeout(resolve, REFRESH));
  refreshing = false;
  await engine.info().then(show, () => undefined); // where the server is away, saving says so
}

function show({ done, images, masks, statistics, hint_seconds, model_version: used, promoted }: EngineInfo): void {
  const { seconds_per_mask: seconds, share_new: share } = statistics;
  time.hintSeconds = hint_seconds;
  find("figures").textContent = [
    `${done} of ${images} images`,
    `${masks} masks`,
    seconds === null ? "" : `${Math.round(seconds)} s a mask`,
    share === null ? "" : `${Math.round(100 * share)} % new`,
    promoted === used ? "" : `model ${promoted} waits for a restart of the server`,
  ]
    .filter(Boolean)
    .join(" · ");
}
