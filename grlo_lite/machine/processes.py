"""The processes of one run: a single one, or several that `accelerate launch` or `torchrun` started.

Only the main one writes and prints. Every process makes the same calls in the same order, or they wait for each other
for ever.
"""

from typing import Any


def _state() -> Any:
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def count() -> int:
    return _state().num_processes


def is_main() -> bool:
    return _state().is_main_process


def agreed(value: Any) -> Any:
    """The main process's value, in every process."""
    from accelerate.utils import broadcast_object_list

    _state()
    return broadcast_object_list([value])[0]


def gathered(value: Any) -> list[Any]:
    """Every process's value, in their order, in every process."""
    from accelerate.utils import gather_object

    _state()
    return gather_object([value])


def wait() -> None:
    """Returns when every process has come here."""
    _state().wait_for_everyone()
