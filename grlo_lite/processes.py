"""The processes of one run: a single one, or several that `accelerate launch` started.

Only the main one writes and prints. Every process makes the same calls in the same order, or they wait for each other
for ever.
"""

from typing import Any


def count() -> int:
    from accelerate import PartialState

    return PartialState().num_processes


def is_main() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process


def agreed(value: Any) -> Any:
    """The main process's value, in every process."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def gathered(value: Any) -> list[Any]:
    """Every process's value, in their order, in every process."""
    from accelerate.utils import gather_object

    return gather_object([value])


def wait() -> None:
    """Returns when every process has come here."""
    from accelerate import PartialState

    PartialState().wait_for_everyone()
