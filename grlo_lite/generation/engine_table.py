"""What the planner and the engines both go by. Imports no torch."""

WORTH_FOLDING = 16  # completions at once below which a dense copy of the weights costs more than it saves


CPU_ROWS = 512  # answers outside of training that are sampled together on a CPU; on a GPU it is rollout.batch


ANSWERING = ("kit", "vllm")  # who answers outside of training: the kit's own decoder, or a vLLM


VLLM_BLOCK = 32  # tokens of vLLM's cache that are kept or dropped together; on a CPU it takes multiples of 32


VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can be given as the most that an adapter has


def vllm_rank(rank: int) -> int:
    """The least maximum that vLLM can be given for adapters of this rank."""
    return next(most for most in VLLM_RANKS if most >= rank)
