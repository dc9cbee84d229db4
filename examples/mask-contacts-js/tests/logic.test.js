// The work, with a stub of the host: `npm test`.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { handle, mask } from '../src/logic.js';

test('addresses and numbers are masked, and nothing else is', () => {
  assert.equal(mask('Ask ada.l@mail.example.com or +49 30/123-4567.'), 'Ask [e-mail] or [phone].');
  assert.equal(mask('zoë@exämple.org, 0301234567'), '[e-mail], [phone]');
  assert.equal(mask('order 123456 of 2026, 5 @ 3.50'), 'order 123456 of 2026, 5 @ 3.50');
});

test('what is no ticket is rejected', () => {
  for (const text of ['', 'null', '{"number": 1}', '{"number": "1", "text": ""}']) {
    const message = { body: new TextEncoder().encode(text) };
    assert.throws(() => handle(message, undefined, {}), { tag: 'reject' });
  }
});
