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

    def get(self, key):
        return SimpleNamespace(value=self.values[key], version=1) if key in self.values else None

    def put(self, key, value):
        self.values[key] = value

    def add(self, counter, delta):
        pass


class LogicTest(unittest.TestCase):
    def setUp(self):
        self.host = SimpleNamespace(effects=Effects())

    def handle(self, order):
        logic.handle(SimpleNamespace(body=json.dumps(order).encode()), None, self.host)

    def test_amounts_are_added_to_the_cent(self):
        for lines in [[[3, "0.10"], [1, "0.20"]], [[1, "0.05"]]]:
            self.handle({"customer": "ada", "lines": lines})
        self.assertEqual(self.host.effects.values, {"total/ada": b"0.55"})

    def test_what_is_no_amount_is_rejected(self):
        for price in ["ten", "NaN", "Infinity", None]:
            with self.assertRaises(Reject):
                self.handle({"customer": "ada", "lines": [[1, price]]})
        self.assertEqual(self.host.effects.values, {})


if __name__ == "__main__":
    unittest.main()
