// Handler: counts orders, and remembers the largest one.
import { reject } from './failures.js';

/** Checks the configuration, once, when the plugin is deployed: what is wrong with it, in words. */
export function validate(host) {
  return [];
}

/** Processes one message. What it does through `host.effects` commits with the message, or not at all. */
export function handle(message, attempt, host) {
  const { number, total } = order(message.body);
  host.effects.add('orders', 1n);
  const entry = host.effects.get('largest');
  let largest = entry ? JSON.parse(new TextDecoder().decode(entry.value)) : { number: 0, total: 0 };
  if (total > largest.total) {
    largest = { number, total };
    host.effects.put('largest', new TextEncoder().encode(JSON.stringify(largest)));
  }
  host.info(`order ${number} arrived; the largest is ${largest.number}`);
}

function order(body) {
  let order;
  try {
    order = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(body));
  } catch (error) {
    throw reject('bad_payload', error);
  }
  if (typeof order?.number !== 'number' || typeof order.total !== 'number') {
    throw reject('bad_payload', 'an order has the numbers `number` and `total`');
  }
  if (order.total < 0) throw reject('negative_total', `order ${order.number} has total ${order.total}`);
  return order;
}
