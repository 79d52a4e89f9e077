// Bundles the page: `node build.mjs DIR` writes index.html, app.js and app.css, `node build.mjs --tests DIR` the unit tests.
import { copyFileSync, mkdirSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

process.chdir(fileURLToPath(new URL(".", import.meta.url)));
const isTests = process.argv[2] === "--tests";
const out = process.argv[isTests ? 3 : 2];
if (!out) throw new Error("want a folder to write to");
mkdirSync(out, { recursive: true });

if (isTests) {
  rmSync(out, { recursive: true });
  const tests = readdirSync("src", { recursive: true }).filter((name) => name.endsWith(".test.ts"));
  await build({
    entryPoints: tests.map((name) => join("src", name)),
    outdir: out,
    outExtension: { ".js": ".mjs" },
    bundle: true,
    platform: "node",
    format: "esm",
    loader: { ".css": "empty" },
  });
} else {
  // What is served has no source map and no names of its own: the sources are beside it.
  await build({
    entryPoints: { app: "src/main.ts" },
    outdir: out,
    bundle: true,
    minify: true,
    format: "esm",
    target: ["es2022"],
    charset: "utf8",
    legalComments: "none",
    inject: ["without-intl.js"],
    define: { "Intl.NumberFormat": "WithoutIntl", "Intl.DateTimeFormat": "WithoutIntl" },
    // uPlot's licence wants to go with every copy.
    banner: { js: `/* with uPlot ${version()}\n${readFileSync("node_modules/uplot/LICENSE", "utf8")}*/` },
  });
  copyFileSync("index.html", join(out, "index.html"));
}

function version() {
  return JSON.parse(readFileSync("node_modules/uplot/package.json", "utf8")).version;
}
