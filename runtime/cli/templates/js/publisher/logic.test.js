// The work, with a stub of the host: `npm test`.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { publish, validate } from '../src/logic.js';

const host = (config, lines = []) => ({
  config: { get: (key) => config[key] },
  info: (text) => lines.push(text),
});

test('a message is handed on', async () => {
  const lines = [];
  const message = { topic: 'orders.created', body: new TextEncoder().encode('{}') };
  await publish(message, undefined, host({ prefix: 'new ' }, lines));
  assert.deepEqual(lines, ['new orders.created: {}']);
});

test('a long prefix is refused', () => {
  assert.deepEqual(validate(host({})), []);
  assert.equal(validate(host({ prefix: 'x'.repeat(201) })).length, 1);
});
