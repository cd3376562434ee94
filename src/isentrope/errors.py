"""What went wrong, in one sentence: by the user's input, or by the disk."""

from typing import ClassVar


class UserError(Exception):
    """The input is wrong; the message says what, what is allowed, and the way out. Exit code 2."""

    exit_code: ClassVar[int] = 2


class DiskError(UserError):
    """The disk refuses (full, read-only, gone); the message says for what, and what stands. Exit code 1."""

    exit_code: ClassVar[int] = 1
