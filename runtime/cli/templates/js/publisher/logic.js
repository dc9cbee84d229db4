// Publisher: hands each message on. Here it goes to the host's log; put your destination in its place.

/** Most characters of a payload that are shown. */
const SHOWN_MAX = 200;

/** Checks the configuration, once, when the plugin is deployed: what is wrong with it, in words. */
export function validate(host) {
  const prefix = host.config.get('prefix') ?? '';
  return prefix.length > SHOWN_MAX ? [`\`prefix\` has more than ${SHOWN_MAX} characters`] : [];
}

/** Forwards one message, and answers the destination's own id for it, or undefined. Those of a batch go side by side. */
export async function publish(message, attempt, host) {
  host.info(line(host.config.get('prefix') ?? '', message));
  return undefined;
}

const line = (prefix, { topic, body }) =>
  `${prefix}${topic}: ${new TextDecoder().decode(body).slice(0, SHOWN_MAX)}`;
