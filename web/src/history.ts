// Undo and redo.

/** A line of states, and where on it we are. States are values: none is ever changed. */
export interface History<T> {
  readonly past: readonly T[];
  readonly now: T;
  readonly future: readonly T[];
}

const LONGEST = 200;

export function begin<T>(now: T): History<T> {
  return { past: [], now, future: [] };
}

/** What comes next; what was undone is forgotten. */
export function advance<T>({ past, now }: History<T>, next: T): History<T> {
  return { past: [...past, now].slice(-LONGEST), now: next, future: [] };
}

export function undo<T>(history: History<T>): History<T> {
  const { past, now, future } = history;
  return past.length ? { past: past.slice(0, -1), now: past[past.length - 1], future: [now, ...future] } : history;
}

export function redo<T>(history: History<T>): History<T> {
  const { past, now, future } = history;
  return future.length ? { past: [...past, now], now: future[0], future: future.slice(1) } : history;
}
