"""Products of few rows with 4-bit weights, which bitsandbytes makes without dequantizing them. No torch."""

from itertools import pairwise
from math import ceil

from grlo_lite.planning.cards import Card
from grlo_lite.planning.model_shapes import Shape

ROWS = (1, 16, 32)  # of which Card has the rates, as fused_1 and so on
FLOOR = 7  # up to so many rows it does for large matrices on every card


def weights_seconds(shape: Shape, card: Card, rows: float, dequantized: float) -> float:
    """Of all linear layers' 4-bit weights in a pass of few rows; `dequantized` is what they take by way of a dense
    copy, which bitsandbytes makes where there are more rows than its kernel is good for, and always on a CPU.
    """
    if not card.cuda:
        return dequantized
    whole = sum(outputs * inputs for outputs, inputs in shape.linears.values())
    alone = sum(o * i for o, i in shape.linears.values() if rows <= most_rows(card, o, i))
    by_kernel = shape.linear_parameters * alone / whole / rate(card, rows)
    return by_kernel + dequantized * (1 - alone / whole)


def rate(card: Card, rows: float) -> float:
    """Weights a second in a product of so many rows, between those of ROWS."""
    measured = list(zip(ROWS, (1 / card.fused_1, 1 / card.fused_16, 1 / card.fused_32), strict=True))
    for (few, quick), (many, slow) in pairwise(measured):
        if rows <= many:
            return 1 / (quick + (slow - quick) * max(rows - few, 0) / (many - few))
    return card.fused_32


def most_rows(card: Card, outputs: int, inputs: int) -> int:
    """Up to how many rows bitsandbytes 0.50.2 multiplies a large matrix without dequantizing it
    (`backends/cuda/ops.py`, `_gemm_4bit_use_custom_cuda`, in its main lines); by waves of blocks of 64 outputs.
    """
    architecture, processors = card.sm
    if not processors:
        return FLOOR
    blocks = ceil(outputs / 64)
    waves = blocks / processors
    for least, rows in TIERS.get(architecture, TIERS[89]):
        if waves >= least:
            return rows(blocks, processors, outputs, inputs)
    return FLOOR


# architecture: from so many waves on, the most rows as a function of blocks, multiprocessors, outputs and inputs
TIERS = {
    75: ((3, lambda b, p, n, k: 128 if k < n else 64), (0.5, lambda b, p, n, k: 64), (0, lambda b, p, n, k: 32)),
    80: (
        (3, lambda b, p, n, k: 128),
        (1, lambda b, p, n, k: 64 if k < n else 32),
        (0, lambda b, p, n, k: _below_a_wave_of_an_a100(b, p, n, k)),
    ),
    86: ((1, lambda b, p, n, k: 128), (0.5, lambda b, p, n, k: 64), (0, lambda b, p, n, k: 16)),
    89: (
        (3, lambda b, p, n, k: 256),
        (2, lambda b, p, n, k: 128),
        (0.8, lambda b, p, n, k: _near_a_wave_of_ada(b, p, n, k)),
        (0.5, lambda b, p, n, k: 64 if k > 2 * n else 8 if b >= 64 else 32),
        (0, lambda b, p, n, k: _below_half_a_wave_of_ada(b, n, k)),
    ),
    90: (
        (3, lambda b, p, n, k: 64),
        (2, lambda b, p, n, k: 48),
        (1, lambda b, p, n, k: 32),
        (0.5, lambda b, p, n, k: FLOOR if k >= n and b * 4 < p * 3 else 16),
        (0, lambda b, p, n, k: FLOOR),
    ),
}


def _below_a_wave_of_an_a100(blocks: int, processors: int, outputs: int, inputs: int) -> int:
    if inputs >= 3 * outputs and blocks * 4 > processors:
        return FLOOR
    if inputs == outputs and blocks >= 48 and blocks * 5 < processors * 3:
        return FLOOR
    if blocks * 2 < processors and inputs <= outputs:
        return 128
    if blocks * 2 < processors and blocks * 3 >= processors:
        return FLOOR
    return 128 if blocks >= processors // 2 and inputs < outputs else 16


def _near_a_wave_of_ada(blocks: int, processors: int, outputs: int, inputs: int) -> int:
    if inputs > 2 * outputs or blocks >= 200:
        return 128
    if inputs >= outputs:
        return 128 if processors >= 60 else 32
    return 64


def _below_half_a_wave_of_ada(blocks: int, outputs: int, inputs: int) -> int:
    if inputs > outputs and blocks <= 48:
        return 12 if inputs >= 3 * outputs else 10
    return 16 if inputs > 2 * outputs or blocks < 48 else 8
