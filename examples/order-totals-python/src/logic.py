"""Handler: keeps the total of each customer's orders, to the cent.

The lines of an order are pairs of a quantity and a price. Prices are texts, because binary fractions cannot hold them.
"""

import json

# What is not imported here is not there later: modules are read when the component is built.
from decimal import Decimal, InvalidOperation

from failures import Reject


def validate(host):
    return []


def handle(message, attempt, host):
    try:
        order = json.loads(message.body)
        customer = str(order["customer"])
        amount = sum((int(quantity) * Decimal(price) for quantity, price in order["lines"]), Decimal(0))
    except (ValueError, TypeError, KeyError, InvalidOperation) as error:
        raise Reject("bad_payload", repr(error)) from error
    if not amount.is_finite():
        raise Reject("bad_payload", f"the order amounts to {amount}")

    key = f"total/{customer}"
    entry = host.effects.get(key)
    total = (Decimal(entry.value.decode()) if entry else Decimal(0)) + amount
    # Committed with the message: an order that is delivered again is not added again.
    host.effects.put(key, str(total).encode())
    host.effects.add("orders", 1)
