// `npm run build` writes the page to sam_jax/serving/static, which the server shows at /. With --tests it bundles the
// unit tests to build/ instead, where node's own runner finds them.

import { copyFile, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const web = path.dirname(fileURLToPath(import.meta.url));
const page = path.join(web, "../sam_jax/serving/static");
const images = path.join(web, "../docs/images");
const runtime = path.join(web, "node_modules/onnxruntime-web/dist");
const SAMPLES = ["dog.jpg", "bags.jpg", "pizza.jpg"];
const STYLES = ["page.css", "annotate.css"];
// The decoder's worker, once for each runtime: which package has it, and its files.
const RUNTIMES = { wasm: ["onnxruntime-web/wasm", ""], webgpu: ["onnxruntime-web/jspi", ".jspi"] };

async function copyAll(names, from, to) {
  await mkdir(to, { recursive: true });
  await Promise.all(names.map((name) => copyFile(path.join(from, name), path.join(to, name))));
}

// What the pages share stands in src/parts; `<!-- part NAME -->` is where it goes.
async function writeHtml(file) {
  const source = path.join(web, "src");
  let html = await readFile(path.join(source, file), "utf8");
  for (const [comment, name] of html.matchAll(/<!-- part (\w+) -->/g)) {
    const part = await readFile(path.join(source, "parts", `${name}.html`), "utf8");
    html = html.replace(comment, () => part.trimEnd());
  }
  await writeFile(path.join(page, file), html);
}

async function buildPage() {
  await rm(page, { recursive: true, force: true });
  await mkdir(page, { recursive: true });
  const options = {
    outdir: page,
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    conditions: ["onnxruntime-web-use-extern-wasm"],
    legalComments: "linked",
  };
  const pages = { page: path.join(web, "src/page.ts"), annotate: path.join(web, "src/annotate/annotate.ts") };
  await build({ entryPoints: pages, ...options });
  for (const [provider, [source, infix]] of Object.entries(RUNTIMES)) {
    await build({
      entryPoints: { [`worker_${provider}`]: path.join(web, "src/worker.ts") },
      alias: { "onnxruntime-web/wasm": source },
      define: { PROVIDER: JSON.stringify(provider) },
      ...options,
    });
    const names = ["mjs", "wasm"].map((ending) => `ort-wasm-simd-threaded${infix}.${ending}`);
    await copyAll(names, runtime, path.join(page, "runtime"));
  }
  await build({ entryPoints: STYLES.map((name) => path.join(web, "src", name)), outdir: page, minify: true });
  await copyAll(SAMPLES, images, path.join(page, "samples"));
  await copyFile(path.join(web, "src/runtime_license.txt"), path.join(page, "runtime/LICENSE.txt"));
  await copyAll(["icon.svg"], path.join(web, "src"), page);
  await writeHtml("annotate.html");
  await writeHtml("index.html"); // last: the server takes an index.html for a whole page
}

async function buildTests() {
  const tests = (await readdir(path.join(web, "test"))).filter((name) => name.endsWith(".test.ts"));
  await build({
    entryPoints: tests.map((name) => path.join(web, "test", name)),
    outdir: path.join(web, "build"),
    outExtension: { ".js": ".mjs" },
    bundle: true,
    platform: "node",
    format: "esm",
    target: "node20",
  });
}

await (process.argv.includes("--tests") ? buildTests() : buildPage());
