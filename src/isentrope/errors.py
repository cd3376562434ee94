"""What a user did wrong, in one sentence."""


class UserError(Exception):
    """The input is wrong; the message says what, what is allowed, and the way out. Exit code 2."""
