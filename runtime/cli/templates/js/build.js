// Builds the component `{{name}}.wasm`.
import { readFile, writeFile } from 'node:fs/promises';
import { componentize } from '@bytecodealliance/componentize-js';

const { component } = await componentize({
  sourcePath: 'src/plugin.js',
  witPath: 'wit',
  worldName: '{{kind}}-plugin',
  // Without `http` there is no `fetch`; with it, the subscription needs `grants.http`. Leave the others on: without
  // `clocks` the time stands still at that of the build, and without `random` random numbers are the same everywhere.
  disableFeatures: ['http', 'fetch-event'],
});

// The manifest is a custom section at the component's end: 0, its size, its name, its text.
function sized(data) {
  const prefix = [];
  let size = data.length;
  for (; size > 127; size >>= 7) prefix.push((size & 127) | 128);
  return Buffer.concat([Buffer.from([...prefix, size]), data]);
}
const manifest = await readFile('manifest.json');
const section = sized(Buffer.concat([sized(Buffer.from('laneway-manifest')), manifest]));
await writeFile('{{name}}.wasm', Buffer.concat([component, Buffer.from([0]), section]));
console.log('{{name}}.wasm is built');
