"""A tiny shape, and a CPU whose rates are round numbers, by which seconds are counted by hand."""

from dataclasses import replace

from grlo_lite.planning import cards
from grlo_lite.planning.model_shapes import Shape

SHAPE = Shape(hidden=64, mlp=128, layers=2, heads=2, kv_heads=1, head_dim=32, vocabulary=1000, tied=True)
LINEAR = 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 128 * 64)  # 73,728
RATES = {
    "flops": 1e9, "few_rows_flops": 1e8, "bytes_a_second": 1e6, "activation_bytes_a_second": 1e7,
    "dequantized_a_second": 1e6, "drawn_a_second": 1e6, "layer_seconds": 0.01, "dense_layer_seconds": 0.004,
    "token_seconds": 0.002, "fused_1": 4e6, "fused_16": 4e6, "fused_32": 2e6,
}  # fmt: skip
CPU = replace(cards.known_card("t4"), cuda=False, **RATES)
