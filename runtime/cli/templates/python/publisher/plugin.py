"""What the host calls. The work is in `logic.py`, which can be tested without WebAssembly."""

import traceback

from componentize_py_types import Err, Ok
from wit_world import exports
from wit_world.imports import config, log, types

import failures
import logic


class Host:
    """What the work may use of the host."""

    config = config

    @staticmethod
    def info(text):
        log.log(log.Level.INFO, text, [])


class Lifecycle(exports.Lifecycle):
    def validate(self):
        errors = logic.validate(Host)
        if errors:
            raise Err(errors)


class Publisher(exports.Publisher):
    def publish(self, batch):
        return [publish(item) for item in batch]


def publish(item):
    """One message's answer; those of its batch have their own."""
    try:
        return Ok(types.Receipt(logic.publish(item.message, item.attempt, Host)))
    except Exception as error:
        return Err(failure(error))


def failure(error):
    """The contract's form of what the work raised."""
    if isinstance(error, failures.Throttled):
        return types.Failure_Throttled(types.Throttle(error.after_ms, error.message))
    for case in ("Retry", "Reject", "UnknownOutcome", "Misconfigured"):
        if isinstance(error, getattr(failures, case)):
            return getattr(types, f"Failure_{case}")(types.Detail(error.code, error.message))
    return types.Failure_Retry(types.Detail("exception", traceback.format_exc(limit=-3)))
