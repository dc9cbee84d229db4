"""Publisher: hands each message on. Here it goes to the host's log; put your destination in its place."""

# Most characters of a payload that are shown.
SHOWN_MAX = 200


def validate(host):
    """Checks the configuration, once, when the plugin is deployed: what is wrong with it, in words."""
    if len(host.config.get("prefix") or "") > SHOWN_MAX:
        return [f"`prefix` has more than {SHOWN_MAX} characters"]
    return []


def publish(message, attempt, host):
    """Forwards one message, and answers the destination's own id for it, or None."""
    host.info(line(host.config.get("prefix") or "", message))
    return None


def line(prefix, message):
    return f"{prefix}{message.topic}: {message.body.decode(errors='replace')[:SHOWN_MAX]}"
