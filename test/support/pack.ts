/**
 * Packs the program that the tests start: dist/ as `npm run build` left it, file by file, but the packages that it imports
 * as a few files. They are some 900, which Node would read and link anew at each of 300 starts: a fifth of all that the
 * suite costs.
 */
import { cp, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build, type Plugin } from 'esbuild';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));

/** @returns a folder of its own that holds the program: dist/ and what our files look for beside it */
export async function packProgram(): Promise<string> {
  const cache = join(ROOT, 'node_modules/.cache');
  await mkdir(cache, { recursive: true });
  const folder = await mkdtemp(join(cache, 'broadcastd-'));
  try {
    for (const name of ['sql', 'package.json']) await cp(join(ROOT, name), join(folder, name), { recursive: true });
    await build({
      entryPoints: [join(ROOT, 'dist/**/*.js')],
      outbase: join(ROOT, 'dist'),
      outdir: join(folder, 'dist'),
      ...{ bundle: true, splitting: true, format: 'esm', platform: 'node', target: 'node20', logLevel: 'error' },
      // It reads a file of its own.
      external: ['pg-format'],
      // For the packages that are CommonJS.
      banner: {
        js: "import { createRequire as requireOf } from 'node:module'; const require = requireOf(import.meta.url);",
      },
      plugins: [ourFilesStay],
    });
  } catch (error) {
    // Jest calls no teardown after a setup that failed.
    await rm(folder, { recursive: true });
    throw error;
  }
  return folder;
}

const ourFilesStay: Plugin = {
  name: 'our files stay as they are',
  setup({ onResolve }) {
    onResolve({ filter: /^\.{1,2}\// }, ({ path, importer }) =>
      importer.startsWith(join(ROOT, 'dist/')) ? { path, external: true } : null,
    );
  },
};
