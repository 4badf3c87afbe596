// Jest loads its setup outside its module system, where .ts is unknown: tsx reads it instead.
import { tsImport } from 'tsx/esm/api';

export default async function setup() {
  await (await tsImport('./run.ts', import.meta.url)).setup();
}
