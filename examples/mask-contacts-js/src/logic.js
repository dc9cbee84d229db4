// Handler: keeps the text of a ticket without the e-mail addresses and telephone numbers in it.
import { reject } from './failures.js';

// The engine in the component has no `Intl` and no classes such as \p{L}.
const EMAIL = /[^\s<>()[\],;:"@]+@[^\s<>()[\],;:"@.]+(?:\.[^\s<>()[\],;:"@.]+)+/g;
/** From seven digits on, with what people put between them. */
const PHONE = /\+?\d(?:[ ()/-]?\d){6,}/g;

export function validate(host) {
  return [];
}

export function handle(message, attempt, host) {
  let ticket;
  try {
    ticket = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(message.body));
  } catch (error) {
    throw reject('bad_payload', error);
  }
  if (!Number.isSafeInteger(ticket?.number) || typeof ticket.text !== 'string') {
    throw reject('bad_payload', 'a ticket has a `number` and a `text`');
  }
  host.effects.put(`ticket/${ticket.number}`, new TextEncoder().encode(mask(ticket.text)));
  host.effects.add('tickets', 1n);
}

export const mask = (text) => text.replace(EMAIL, '[e-mail]').replace(PHONE, '[phone]');
