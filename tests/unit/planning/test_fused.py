"""What the planner makes of bitsandbytes' products of few rows, beside bitsandbytes' own choice and by hand."""

import ast
import functools
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from grlo_lite.planning import cards, fused, timing
from grlo_lite.planning.model_shapes import Shape
from grlo_lite.recipe import loading as recipes

QWEN_4B = Shape(2560, 9728, 36, 32, 8, 128, 151_936, True)
SHAPES = {
    "1.7B": Shape(2048, 6144, 28, 16, 8, 128, 151_936, True),
    "4B": QWEN_4B,
    "8B": Shape(4096, 12_288, 36, 32, 8, 128, 151_936, False),
    "Llama 3B": Shape(3072, 8192, 28, 24, 8, 128, 128_256, True),
}


@pytest.fixture(scope="module")
def chooses():
    """bitsandbytes' own choice, from its source: the module itself can only be imported beside CUDA."""
    package = find_spec("bitsandbytes")
    assert package is not None
    assert package.origin
    source = (Path(package.origin).parent / "backends" / "cuda" / "ops.py").read_text()
    function = next(n for n in ast.parse(source).body if getattr(n, "name", "") == "_gemm_4bit_use_custom_cuda")
    here = {"functools": functools, "torch": torch, "_GEMM_4BIT_CUSTOM_FLOOR_M": 4, "_gpu_dispatch_props": None}
    exec(compile(ast.Module([function], []), "ops.py", "exec"), here)

    def chosen(card, rows, outputs, inputs):
        architecture, processors = card.sm
        here["_gpu_dispatch_props"] = lambda index: (processors, *divmod(architecture, 10))
        here["_gemm_4bit_use_custom_cuda"].cache_clear()
        dtype = torch.bfloat16 if card.bf16 else torch.float16
        return here["_gemm_4bit_use_custom_cuda"](0, dtype, rows, outputs, inputs)

    return chosen


@pytest.mark.parametrize("name", list(cards.known_cards()))
def test_large_matrices_go_by_the_kernel_that_bitsandbytes_chooses(name, chooses):
    card, compared = cards.known_card(name), 0
    for model, shape in SHAPES.items():
        for layer, (outputs, inputs) in shape.linears.items():
            if outputs * inputs < 4 * 2**20:
                continue  # small ones it chooses by other rules; they are a tenth of a model
            for rows in (1, 4, 16, 32, 64, 256, 513):
                said = rows <= fused.most_rows(card, outputs, inputs)
                assert said == chooses(card, rows, outputs, inputs), (model, layer, rows)
                compared += 1
    assert compared > 100


def test_a_t4s_rollout_of_32_rows_dequantizes_nothing():
    """For every layer of Qwen3-4B; on an RTX 4090, for gate and up at 64 rows and none at 600."""
    t4, ada = cards.known_card("t4"), cards.known_card("rtx4090")
    alone = QWEN_4B.linear_parameters * 0.53 / (320e9 * 0.75)
    assert fused.weights_seconds(QWEN_4B, t4, 32, 99.0) == pytest.approx(alone)
    wide = QWEN_4B.linears["gate_proj"]
    assert fused.most_rows(ada, *wide) >= 64
    assert fused.weights_seconds(QWEN_4B, ada, 600, 99.0) == pytest.approx(99.0)
    assert fused.weights_seconds(QWEN_4B, replace(t4, cuda=False), 1, 99.0) == 99.0


def test_between_the_rows_that_were_measured_seconds_are_between():
    card = replace(cards.known_card("t4"), fused_1=4.0, fused_16=2.0, fused_32=1.0)
    assert [fused.rate(card, rows) for rows in (1, 16, 32, 40)] == [4.0, 2.0, 1.0, 1.0]
    assert fused.rate(card, 24) == pytest.approx(1 / 0.75)
    assert fused.rate(card, 0.5) == 4.0


def test_the_t4s_planned_token_is_a_third_of_what_dequantizing_would_make_it():
    recipe = recipes.load("qwen3-4b-16gb", [])
    card = replace(cards.known_card("t4"), layer_seconds=1e-6, token_seconds=1e-6)  # the host aside
    other = replace(card, sm=(75, 10_000), fused_1=1.0)  # so many processors that every product is less than a wave
    now = timing.token_seconds(recipe, QWEN_4B, card, "compact", 33)
    by_dense = timing.token_seconds(recipe, QWEN_4B, other, "compact", 33)
    assert now < by_dense / 3
    assert timing.token_seconds(recipe, QWEN_4B, card, "folded", 33) < by_dense  # which never dequantizes a token
