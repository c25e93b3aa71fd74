import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const root = path.join(path.dirname(fileURLToPath(import.meta.url)), "..");

/** The types of React that the hook uses. */
const REACT = `
export interface Context<T> { value: T }
export function createContext<T>(value: T): Context<T>;
export function useContext<T>(context: Context<T>): T;
export function useEffect(effect: () => void | (() => void), dependencies: readonly unknown[]): void;
export function useRef<T>(value: T): { current: T };
export function useState<T>(value: T): [T, (next: T | ((before: T) => T)) => void];
`;

test("the hook for React compiles and has at most 30 lines", () => {
  const [, hook] = /```tsx\n([^]*?)```/.exec(readFileSync(path.join(root, "README.md"), "utf8"));
  assert.ok(hook.trimEnd().split("\n").length <= 30);
  const directory = mkdtempSync(path.join(root, "node_modules/.readme-"));
  try {
    writeFileSync(path.join(directory, "hook.tsx"), hook);
    writeFileSync(path.join(directory, "react.d.ts"), REACT);
    const paths = { deeperhub: [path.join(root, "dist/deeperhub.d.ts")], react: ["./react.d.ts"] };
    const compilerOptions = {
      strict: true, noEmit: true, target: "es2020", module: "esnext", moduleResolution: "bundler", jsx: "preserve", types: [], paths,
    };
    writeFileSync(path.join(directory, "tsconfig.json"), JSON.stringify({ compilerOptions, files: ["hook.tsx"] }));
    execFileSync(process.execPath, [path.join(root, "node_modules/typescript/bin/tsc"), "-p", directory], { encoding: "utf8" });
  } catch (error) {
    assert.fail(error.stdout || error);
  } finally {
    rmSync(directory, { recursive: true });
  }
});
