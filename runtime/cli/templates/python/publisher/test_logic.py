"""The work, with a stub of the host: `./test.sh`."""

import unittest
from types import SimpleNamespace

import logic


def host(config, lines):
    return SimpleNamespace(config=config, info=lines.append)


class LogicTest(unittest.TestCase):
    def test_a_message_is_handed_on(self):
        lines = []
        message = SimpleNamespace(topic="orders.created", body=b"{}")
        logic.publish(message, None, host({"prefix": "new "}, lines))
        self.assertEqual(lines, ["new orders.created: {}"])

    def test_a_long_prefix_is_refused(self):
        self.assertEqual(logic.validate(host({}, [])), [])
        self.assertEqual(len(logic.validate(host({"prefix": "x" * 201}, []))), 1)


if __name__ == "__main__":
    unittest.main()
