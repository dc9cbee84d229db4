"""Handler: counts orders, and remembers the largest one."""

import json

from failures import Reject


def validate(host):
    """Checks the configuration, once, when the plugin is deployed: what is wrong with it, in words."""
    return []


def handle(message, attempt, host):
    """Processes one message. What it does through `host.effects` commits with the message, or not at all."""
    try:
        order = json.loads(message.body)
        number, total = int(order["number"]), float(order["total"])
    except (ValueError, TypeError, KeyError) as error:
        raise Reject("bad_payload", repr(error)) from error
    if total < 0:
        raise Reject("negative_total", f"order {number} has total {total}")

    host.effects.add("orders", 1)
    entry = host.effects.get("largest")
    largest = json.loads(entry.value) if entry else {"number": 0, "total": 0}
    if total > largest["total"]:
        largest = {"number": number, "total": total}
        host.effects.put("largest", json.dumps(largest).encode())
    host.info(f"order {number} arrived; the largest is {largest['number']}")
