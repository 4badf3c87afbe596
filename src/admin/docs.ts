/** The page /docs: routes and problems, as plain HTML that needs nothing from elsewhere. */
import { catalogue } from './problems.js';
import type { Route } from './route.js';

export function docsPage(routes: readonly Route[]): string {
  const rows = routes.map(
    ({ method, url, role, summary }) =>
      `<tr><td>${method}</td><td><code>${escaped(url)}</code></td><td>${role ?? 'anybody'}</td><td>${escaped(summary)}</td></tr>`,
  );
  const problems = Object.entries(catalogue).map(
    ([code, { status, title, cause, advice }]) =>
      `<tr id="${code}"><td>${status}</td><td><code>${code}</code></td><td>${escaped(title)}. ${escaped(cause)}</td><td>${escaped(advice)}</td></tr>`,
  );
  return `<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>broadcastd: the API</title><link rel="stylesheet" href="/docs.css"></head>
<body>
<h1>broadcastd: the API</h1>
<p>Send <code>Authorization: Bearer &lt;secret&gt;</code> with one of the ADMIN_TOKENS. Each role may do what those before
it may: viewer, operator, admin. The schemas are in <a href="/openapi.json">/openapi.json</a>.</p>
<h2>Routes</h2>
<table><tr><th>method</th><th>path</th><th>role</th><th>what it does</th></tr>
${rows.join('\n')}
</table>
<h2>Problems</h2>
<p>Errors are <code>application/problem+json</code> (RFC 9457) with one of these codes.</p>
<table><tr><th>status</th><th>code</th><th>what happened</th><th>what to do</th></tr>
${problems.join('\n')}
</table>
</body>
</html>
`;
}

export const STYLE = `body { font-family: system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; line-height: 1.4 }
table { border-collapse: collapse; width: 100% }
th, td { border-bottom: 1px solid #ccc; padding: 0.3rem 0.6rem 0.3rem 0; text-align: left; vertical-align: top }
tr:target { background: #fff3c4 }
`;

function escaped(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');
}
