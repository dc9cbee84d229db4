// What the work can throw, and what the host does about it. Any other exception is a retry.

const detailed = (tag) => (code, message) => ({ tag, val: { code, message: String(message) } });

/** Took no effect: back off and try again. */
export const retry = detailed('retry');
/** Will never succeed: dead-letter now. */
export const reject = detailed('reject');
/** May have taken effect outside: the subscription's policy decides. */
export const unknownOutcome = detailed('unknown-outcome');
/** Cannot work as configured: pause the subscription and keep its messages. */
export const misconfigured = detailed('misconfigured');
/** The destination asks for a pause, in milliseconds if it said so. The attempt does not count. */
export const throttled = (message, afterMs) => ({
  tag: 'throttled',
  val: { afterMs: afterMs === undefined ? undefined : BigInt(afterMs), message },
});

/** The contract's form of what the work threw. */
export function failure(thrown) {
  if (thrown instanceof Error) return retry('exception', `${thrown}\n${thrown.stack}`);
  return thrown?.tag ? thrown : retry('exception', thrown);
}
