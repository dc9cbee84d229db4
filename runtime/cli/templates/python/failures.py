"""What the work can raise, and what the host does about it. Any other exception is a retry."""


class Failure(Exception):
    """A short code that is counted, such as `http_404`, and words."""

    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Retry(Failure):
    """Took no effect: back off and try again."""


class Reject(Failure):
    """Will never succeed: dead-letter now."""


class UnknownOutcome(Failure):
    """May have taken effect outside: the subscription's policy decides."""


class Misconfigured(Failure):
    """Cannot work as configured: pause the subscription and keep its messages."""


class Throttled(Exception):
    """The destination asks for a pause, in milliseconds if it said so. The attempt does not count."""

    def __init__(self, message, after_ms=None):
        super().__init__(message)
        self.message = message
        self.after_ms = after_ms
