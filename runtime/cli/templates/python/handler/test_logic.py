"""The work, with a stub of the host: `./test.sh`."""

import json
import unittest
from types import SimpleNamespace

import logic
from failures import Reject


class Effects:
    """A state in memory."""

    def __init__(self):
        self.values = {}
        self.counters = {}

    def get(self, key):
        return SimpleNamespace(value=self.values[key], version=1) if key in self.values else None

    def put(self, key, value):
        self.values[key] = value

    def add(self, counter, delta):
        self.counters[counter] = self.counters.get(counter, 0) + delta


class LogicTest(unittest.TestCase):
    def setUp(self):
        self.host = SimpleNamespace(effects=Effects(), info=lambda text: None)

    def handle(self, body):
        logic.handle(SimpleNamespace(body=body), None, self.host)

    def test_orders_are_counted_and_the_largest_is_remembered(self):
        for number, total in [(1, 10), (2, 30), (3, 20)]:
            self.handle(json.dumps({"number": number, "total": total}).encode())
        self.assertEqual(self.host.effects.counters, {"orders": 3})
        self.assertEqual(json.loads(self.host.effects.values["largest"]), {"number": 2, "total": 30})

    def test_what_is_no_order_is_rejected(self):
        for body in [b"", b"[]", b"{}", b'{"number": 1, "total": -1}', b"\xff"]:
            with self.assertRaises(Reject):
                self.handle(body)
        self.assertEqual(self.host.effects.counters, {})


if __name__ == "__main__":
    unittest.main()
