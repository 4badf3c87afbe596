import { tsImport } from 'tsx/esm/api';

export default async function teardown() {
  await (await tsImport('./run.ts', import.meta.url)).teardown();
}
