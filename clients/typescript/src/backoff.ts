import type { Settings } from "./settings.js";

/** Returns the random delay before attempt `n`, from 1, since something worked. */
export function backoff({ minDelay: min, maxDelay: max }: Settings, n: number): number {
  const lower = n > 1 ? Math.min(min, max) : 0;
  return lower + Math.random() * (Math.min(min * 2 ** n, max) - lower);
}
