"""How many padded tokens a scoring forward may hold, as the reward model and the planner both count it. No torch."""

CPU_TOKENS = 8192  # on a CPU, where more is no faster


LEAST_TOKENS = 1024  # on a GPU, however little of its memory is free


def token_bytes(hidden: int, mlp: int, width: int) -> int:
    """Bytes of a padded token of a scoring forward: the residual stream and its norm in fp32, and at `width` bytes a
    number the attention's and the MLP's widest tensors.
    """
    return 4 * 2 * hidden + width * (8 * hidden + 3 * mlp)
