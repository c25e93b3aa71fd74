import assert from "node:assert/strict";
import path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const entry = path.join(path.dirname(fileURLToPath(import.meta.url)), "../src/frames.ts");
const { outputFiles } = await build({ entryPoints: [entry], bundle: true, write: false, format: "esm" });
const { byteLength, isPattern, matches } = await import(
  `data:text/javascript,${encodeURIComponent(outputFiles[0].text)}`
);

test("byteLength counts UTF-8", () => {
  for (const text of ["", "abc", "\u007f\u0080", "é", "߿ࠀ", "日本語", "😀", "a😀é日", "\uffff"]) {
    assert.equal(byteLength(text), Buffer.byteLength(text), text);
  }
});

test("patterns match whole levels", () => {
  const cases = [
    ["a.b", "a.b", true],
    ["a.b", "a.c", false],
    ["a.*", "a.b", true],
    ["a.*", "a.b.c", false],
    ["a.*", "a", false],
    ["*.b", "a.b", true],
    ["a.>", "a.b", true],
    ["a.>", "a.b.c", true],
    ["a.>", "a", false],
    [">", "a", true],
    [">", "a.b", true],
    ["a.*.c", "a.b.c", true],
    ["a.*.>", "a.b", false],
    ["a.*.>", "a.b.c.d", true],
  ];
  for (const [pattern, topic, expected] of cases)
    assert.equal(matches(pattern, topic), expected, `${pattern} ${topic}`);
});

test("only whole levels make a pattern", () => {
  for (const pattern of ["*", ">", "a.*", "*.a", "a.>", "a.*.b"]) assert.ok(isPattern(pattern), pattern);
  for (const topic of ["a", "a.b", "a*", "a.b>", "*a.b"]) assert.ok(!isPattern(topic), topic);
});
