/** The certificates of the folder beside this file: a private CA's, and a server's at 127.0.0.1 that it signed. */
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';

/** The path of the CA's certificate. */
export const CA_FILE = fileURLToPath(new URL('./certificates/ca.pem', import.meta.url));

export async function serverCertificate(): Promise<{ key: string; cert: string }> {
  const read = (name: string) => readFile(new URL(`./certificates/${name}`, import.meta.url), 'utf8');
  return { key: await read('server.key'), cert: await read('server.pem') };
}
