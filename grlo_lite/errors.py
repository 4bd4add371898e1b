"""What ends a command in order, each with an exit code of its own; `cli.run_command` turns them into one line."""


class BadInput(Exception):
    """What the user gave cannot be used: what is wrong, where, and how to mend it."""

    exit_code = 2


class DoesNotFit(Exception):
    """The recipe needs more memory than there is; the cheapest change that fits is named."""

    exit_code = 3


class DiskFull(Exception):
    """The disk takes no more: what could not be written, and what is kept."""

    exit_code = 1


class EngineFailed(Exception):
    """The rollout engine died or could not do what it was asked for: what it said, and what is kept."""

    exit_code = 1
