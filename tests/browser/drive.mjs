// Drives Chromium for the tests of the page: `node drive.mjs CHROMIUM` reads a line of JSON for each call of Playwright,
// `{"page": 1, "call": "mouse.move", "args": [10, 20]}`, and answers it with one.
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

/** What keeps it from asking anybody but whom a page asks. */
const QUIET = [
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-domain-reliability",
  "--disable-gpu",
  "--disable-quic",
  "--disable-sync",
  "--no-first-run",
];
/** Longer than anything takes, shorter than the tests wait for an answer. */
const TIMEOUT_MS = 30_000;

const browser = await chromium.launch({
  executablePath: process.argv[2],
  // Its sandbox wants a user that is not root.
  chromiumSandbox: process.getuid?.() !== 0,
  args: QUIET,
});
const pages = new Map();
let ids = 0;

/** A page in a context of its own, and all that goes wrong in it. */
async function open(options) {
  const context = await browser.newContext({ locale: "en-US", timezoneId: "UTC", ...options });
  context.setDefaultTimeout(TIMEOUT_MS);
  const page = await context.newPage();
  const complaints = [];
  page.on("console", (message) => {
    if (["error", "warning", "assert"].includes(message.type())) complaints.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => complaints.push(`exception: ${error.stack ?? error}`));
  page.on("dialog", (dialog) => {
    complaints.push(`dialog: ${dialog.message()}`);
    void dialog.dismiss();
  });
  page.on("request", (request) => {
    const { protocol, host } = new URL(request.url());
    if (protocol !== "data:" && host !== options.host) complaints.push(`asked elsewhere: ${request.url()}`);
  });
  context.on("page", (other) => {
    if (other !== page) complaints.push(`another page: ${other.url()}`);
  });
  ids += 1;
  pages.set(ids, { context, page, complaints });
  return ids;
}

const own = {
  /** As Playwright's, with the function as text. */
  evaluate: ({ page }, source, argument) => page.evaluate((0, eval)(`(${source})`), argument),
  complaints: ({ complaints }) => complaints.splice(0),
  close: ({ context }, id) => {
    pages.delete(id);
    return context.close();
  },
};

async function answer({ page: id, call, args }) {
  if (call === "open") return open(...args);
  const known = pages.get(id);
  if (own[call]) return own[call](known, ...args);
  const path = call.split(".");
  const method = path.pop();
  const target = path.reduce((object, name) => object[name], known.page);
  return target[method](...args);
}

// Whoever asked is gone: so is what it asked for, below.
process.stdout.on("error", () => process.stdin.destroy());

for await (const line of createInterface({ input: process.stdin })) {
  let said;
  try {
    const value = await answer(JSON.parse(line));
    // What Playwright gives back beside plain values (responses, handles) is for nobody.
    said = { value: value?.constructor?.name === "Object" || Array.isArray(value) || typeof value !== "object" ? value : null };
  } catch (error) {
    said = { error: String(error) };
  }
  process.stdout.write(`${JSON.stringify(said)}\n`);
}
await browser.close();
