"""How many padded tokens a scoring forward may hold, as the reward model and the planner both count it. No torch."""

from collections.abc import Callable
from typing import TypeVar

Row = TypeVar("Row")
CPU_TOKENS = 8192  # on a CPU, where more is no faster


LEAST_TOKENS = 1024  # on a GPU, however little of its memory is free


def batches_under_budget(rows: list[Row], tokens: Callable[[Row], int], budget: int) -> list[list[Row]]:
    """Rows, already sorted by their `tokens`, in batches of at most `budget` padded tokens; a row that alone has more
    goes alone.
    """
    batches: list[list[Row]] = []
    for row in rows:
        if batches and (len(batches[-1]) + 1) * tokens(row) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def token_bytes(hidden: int, mlp: int, width: int) -> int:
    """Bytes of a padded token of a scoring forward: the residual stream and its norm in fp32, and at `width` bytes a
    number the attention's and the MLP's widest tensors.
    """
    return 4 * 2 * hidden + width * (8 * hidden + 3 * mlp)
