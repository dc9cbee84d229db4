// The work, with a stub of the host: `npm test`.
import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';

import { handle } from '../src/logic.js';

let host, values, counters;

beforeEach(() => {
  values = new Map();
  counters = new Map();
  host = {
    effects: {
      get: (key) => (values.has(key) ? { value: values.get(key), version: 1n } : undefined),
      put: (key, value) => values.set(key, value),
      add: (counter, delta) => counters.set(counter, (counters.get(counter) ?? 0n) + delta),
    },
    info: () => {},
  };
});

const send = (text) => handle({ body: new TextEncoder().encode(text) }, undefined, host);

test('orders are counted, and the largest is remembered', () => {
  for (const [number, total] of [[1, 10], [2, 30], [3, 20]]) send(JSON.stringify({ number, total }));
  assert.equal(counters.get('orders'), 3n);
  assert.deepEqual(JSON.parse(new TextDecoder().decode(values.get('largest'))), { number: 2, total: 30 });
});

test('what is no order is rejected', () => {
  for (const text of ['', 'null', '{}', '{"number": 1, "total": -1}']) {
    assert.throws(() => send(text), { tag: 'reject' });
  }
  assert.equal(counters.size, 0);
});
