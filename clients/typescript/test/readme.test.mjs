// The programs of the README and of the book compile.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const root = path.join(path.dirname(fileURLToPath(import.meta.url)), "..");

/** The types of other packages that the programs use, and what stands for the reader's application. */
const DECLARATIONS = {
  "react.d.ts": `
export interface Context<T> { value: T }
export function createContext<T>(value: T): Context<T>;
export function useContext<T>(context: Context<T>): T;
export function useEffect(effect: () => void | (() => void), dependencies: readonly unknown[]): void;
export function useRef<T>(value: T): { current: T };
export function useState<T>(value: T): [T, (next: T | ((before: T) => T)) => void];
`,
  "ws.d.ts":
    "declare const socket: new (url: string, protocols: string[]) => WebSocket; export default socket;",
  "reader.d.ts": `
declare const hub: import("deeperhub").Hub;
declare const chat: import("deeperhub").Subscription<{ name: string; text: string }>;
declare function show(...texts: string[]): void;
declare function reload(): void;
declare function save(message: { text: string }): Promise<void>;
declare function showConnection(state: string, until?: number, reason?: string): void;
declare function showChat(state: string, recovered?: boolean, reason?: string): void;
declare function showLogin(): void;
`,
};

/** Returns the blocks of a page in TypeScript. */
function programs(page) {
  const text = readFileSync(path.join(root, page), "utf8");
  return [...text.matchAll(/```(tsx?)\n([^]*?)```/g)].map(([, language, code]) => ({ language, code }));
}

test("the programs compile", () => {
  const directory = mkdtempSync(path.join(root, "node_modules/.programs-"));
  try {
    for (const [name, text] of Object.entries(DECLARATIONS)) writeFileSync(path.join(directory, name), text);
    const all = [...programs("README.md"), ...programs("../../docs/client-typescript.md")];
    assert.ok(all.length > 8);
    const files = all.map(({ language, code }, index) => {
      const name = `program${index}.${language}`;
      writeFileSync(path.join(directory, name), `${code}\nexport {};\n`);
      return name;
    });
    const paths = {
      deeperhub: [path.join(root, "dist/deeperhub.d.ts")],
      react: ["./react.d.ts"],
      ws: ["./ws.d.ts"],
    };
    const compilerOptions = {
      strict: true,
      noEmit: true,
      target: "es2022",
      module: "esnext",
      moduleResolution: "bundler",
      jsx: "preserve",
      types: [],
      paths,
    };
    writeFileSync(
      path.join(directory, "tsconfig.json"),
      JSON.stringify({ compilerOptions, files: ["reader.d.ts", ...files] }),
    );
    execFileSync(process.execPath, [path.join(root, "node_modules/typescript/bin/tsc"), "-p", directory], {
      encoding: "utf8",
    });
  } catch (error) {
    assert.fail(error.stdout || error);
  } finally {
    rmSync(directory, { recursive: true });
  }
});

test("the hook for React has at most 30 lines, and is the same in both places", () => {
  const hook = ({ language }) => language === "tsx";
  const [{ code }] = programs("README.md").filter(hook);
  assert.ok(code.trimEnd().split("\n").length <= 30);
  assert.equal(programs("../../docs/client-typescript.md").find(hook).code, code);
});
