"""What the host calls. The work is in `logic.py`, which can be tested without WebAssembly."""

import traceback

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import config, effects, log, types

import failures
import logic


class Host:
    """What the work may use of the host."""

    config = config
    effects = effects

    @staticmethod
    def info(text):
        log.log(log.Level.INFO, text, [])


class Lifecycle(exports.Lifecycle):
    def validate(self):
        errors = logic.validate(Host)
        if errors:
            raise Err(errors)


class Handler(exports.Handler):
    def handle(self, message, attempt):
        try:
            logic.handle(message, attempt, Host)
        except Exception as error:
            raise Err(failure(error)) from None


def failure(error):
    """The contract's form of what the work raised."""
    if isinstance(error, failures.Throttled):
        return types.Failure_Throttled(types.Throttle(error.after_ms, error.message))
    for case in ("Retry", "Reject", "UnknownOutcome", "Misconfigured"):
        if isinstance(error, getattr(failures, case)):
            return getattr(types, f"Failure_{case}")(types.Detail(error.code, error.message))
    return types.Failure_Retry(types.Detail("exception", traceback.format_exc(limit=-3)))
