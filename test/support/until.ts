/** Waits for a condition that no event tells of, such as a row's state. */
const LOOK_EVERY_MS = 20;

/** @returns the first truthy value of `look`; rejects with `what` after `ms` */
export async function until<T>(
  what: string,
  look: () => Promise<T | undefined | false | null>,
  ms = 10_000,
): Promise<T> {
  const deadline = performance.now() + ms;
  while (true) {
    const value = await look();
    if (value) return value;
    if (performance.now() > deadline) throw new Error(`within ${ms} ms it did not come about that ${what}`);
    await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
  }
}

/** A promise that the test resolves by hand. */
export function gate(): { readonly opened: Promise<void>; open(): void } {
  let open = () => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { opened, open };
}
