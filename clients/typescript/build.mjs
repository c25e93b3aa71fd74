// Builds dist/ and the file that hubs serve: build.mjs. With --check, compares what it builds with
// the committed files instead. Both measure the size of the minified file.
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { minify } from "terser";

/** The most bytes of the minified and compressed file. */
const MAX_BYTES = 8192;

const root = path.dirname(fileURLToPath(import.meta.url));
const { version } = JSON.parse(readFileSync(path.join(root, "package.json"), "utf8"));
const banner = `/*! deeperhub ${version}, MIT OR Apache-2.0, generated from clients/typescript/src */`;

async function bundle(format, isForNode) {
  const { outputFiles } = await build({
    absWorkingDir: root,
    entryPoints: ["src/index.ts"],
    bundle: true,
    write: false,
    format,
    target: "es2020",
    minify: true,
    define: { NODE: String(isForNode) },
    // Names of internal members. Keys of the protocol have no underscore at the start.
    mangleProps: /^_./,
    legalComments: "none",
  });
  // A second pass, which inlines more: 3 % of the compressed size. No getter has an effect that is
  // wanted, and no method of an object is called with `new`.
  const compress = { passes: 3, pure_getters: true, unsafe_arrows: true, unsafe_methods: true };
  const { code } = await minify(outputFiles[0].text, { module: format === "esm", ecma: 2020, compress });
  return `${banner}\n${code}\n`;
}

function declarations() {
  const directory = mkdtempSync(path.join(tmpdir(), "deeperhub-"));
  try {
    const tsc = path.join(root, "node_modules/typescript/bin/tsc");
    const options = ["--noEmit", "false", "--declaration", "--emitDeclarationOnly", "--outDir", directory];
    execFileSync(process.execPath, [tsc, "-p", root, "--rootDir", root, ...options], {
      cwd: root,
      stdio: "inherit",
    });
    const text = readFileSync(path.join(directory, "src/index.d.ts"), "utf8");
    if (/^import /m.test(text)) throw new Error("the declarations of src/index.ts must not import others");
    return `${banner}\n${text}`;
  } finally {
    rmSync(directory, { recursive: true });
  }
}

const types = declarations();
const esm = await bundle("esm", false);
const files = {
  "dist/deeperhub.js": esm,
  "dist/deeperhub.node.js": await bundle("esm", true),
  "dist/deeperhub.cjs": await bundle("cjs", true),
  "dist/deeperhub.d.ts": types,
  "dist/deeperhub.d.cts": types,
  // A crate contains what it serves.
  "../../crates/deeperhub-api/assets/deeperhub.js": esm,
};
const bytes = gzipSync(esm, { level: 9 }).length;
console.log(`deeperhub.js: ${esm.length} bytes, ${bytes} compressed (at most ${MAX_BYTES})`);
if (bytes > MAX_BYTES) process.exitCode = 1;

if (process.argv.includes("--check")) {
  for (const [name, text] of Object.entries(files)) {
    if (readFileSync(path.join(root, name), "utf8") === text) continue;
    console.error(`${name} differs from its source: run npm run build, and commit it`);
    process.exitCode = 1;
  }
} else {
  mkdirSync(path.join(root, "dist"), { recursive: true });
  for (const [name, text] of Object.entries(files)) writeFileSync(path.join(root, name), text);
}
