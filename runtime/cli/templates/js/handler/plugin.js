// What the host calls. The work is in `logic.js`, which can be tested without WebAssembly.
import * as config from 'laneway:plugin/config@0.1.0';
import * as effects from 'laneway:plugin/effects@0.1.0';
import { log } from 'laneway:plugin/log@0.1.0';

import { failure } from './failures.js';
import * as logic from './logic.js';

/** What the work may use of the host. */
const host = { config, effects, info: (text) => log('info', text, []) };

export const lifecycle = {
  validate() {
    const errors = logic.validate(host);
    if (errors.length > 0) throw errors;
  },
};

export const handler = {
  handle(message, attempt) {
    try {
      logic.handle(message, attempt, host);
    } catch (thrown) {
      throw failure(thrown);
    }
  },
};
