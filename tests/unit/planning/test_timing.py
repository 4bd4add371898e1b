"""Seconds by hand, on a card whose rates are round numbers."""

from dataclasses import replace

import pytest

from grlo_lite.models import names
from grlo_lite.planning import memory, timing
from grlo_lite.prompts import prepared
from grlo_lite.recipe import loading as recipes
from tests.unit.planning.round_numbers import CPU, LINEAR, SHAPE

GPU = replace(CPU, cuda=True)


def wanted(*words):
    return recipes.load("microcosm", ["prompts.source=mine.jsonl", "algorithm.updates_per_rollout=1", *words])


def test_weights_are_dequantized_and_read():
    assert SHAPE.linear_parameters == LINEAR
    assert timing.weights_seconds("none", SHAPE, CPU) == pytest.approx(4 * LINEAR / 1e6)
    assert timing.weights_seconds("nf4", SHAPE, GPU) == pytest.approx(2 * LINEAR / 1e6 + LINEAR / 1e6)


def test_a_layers_element_wise_bytes():
    inputs, outputs = 64 * 6 + 128, 64 + 32 + 32 + 64 + 128 + 128 + 64
    plain = 4 * (inputs + outputs + 5 * 128 + 6 * 64 + 12 * 96) + 48 * 64
    assert timing.token_traffic(SHAPE, CPU, adapted=False) == plain
    assert timing.token_traffic(SHAPE, CPU, adapted=True) == plain + 4 * inputs + 24 * outputs


@pytest.mark.parametrize(
    ("micro", "prompt", "completion"),
    [(32, 128 * 4 / 5, 48), (8, 128 * 4 / 5, 24 * 5 / 4), (1, 64, 24 * 33 / 32)],
)
def test_padding_where_lengths_are_spread_evenly(micro, prompt, completion):
    """32 completions of up to 48 tokens, sorted; four prompts of up to 128, the longest of m at m / (m + 1)."""
    assert timing.padded_tokens(wanted(), micro) == pytest.approx((prompt, completion))


def test_a_token_takes_kernels_and_host_one_after_the_other_on_a_cpu_and_side_by_side_on_a_gpu():
    values, rows = wanted(), 3
    attended, traffic = 64 + 24, 2 * timing.token_traffic(SHAPE, CPU, adapted=False)
    cache = rows * attended * 2 * 2 * 32 * 4
    products = 2 * rows * (LINEAR + 64_000) / 1e8 + 4 * (LINEAR + 64_000) / 1e6
    on_card = products + (rows * traffic + cache) / 1e7 + rows * 1000 / 1e6
    host = 0.002 + 2 * 0.004
    assert timing.token_seconds(values, SHAPE, CPU, "folded", rows) == pytest.approx(on_card + host)
    slow = replace(GPU, dense_layer_seconds=10.0)
    assert timing.token_seconds(values, SHAPE, slow, "folded", rows) == pytest.approx(20.002)


def test_rows_that_leave_make_room():
    """Eight at once of 32: three waves more, on average half as long as the longest; `generate` waits for it."""
    values = wanted()
    seconds = {
        e: timing.rollout_seconds(values, SHAPE, CPU, memory.Sizes(8, 1, 1, e), 32) for e in ("compact", "generate")
    }
    a_token = timing.token_seconds(values, SHAPE, CPU, "compact", 32 * 24 / (48 * 2.5))
    prefill = timing.forward(values, SHAPE, CPU, 64 * 4, 64, adapted=True).seconds(CPU)
    assert seconds["compact"] == pytest.approx(prefill + 48 * 2.5 * a_token)
    a_token = timing.token_seconds(values, SHAPE, CPU, "generate", 8)
    prefill = timing.forward(values, SHAPE, CPU, 64 * 32, 64, adapted=True).seconds(CPU)
    assert seconds["generate"] == pytest.approx(prefill + 48 * 4 * a_token)


def test_the_microcosms_prompts_were_counted():
    from grlo_lite.models.chat_template import formatted, load_tokenizer

    values = recipes.load("microcosm", ["prompts.decontaminate=false"])
    rows = prepared.prompt_rows(values).train
    tokenizer = load_tokenizer(names.policy_path(values), "main")
    lengths = [len(tokenizer(formatted(tokenizer, row), add_special_tokens=False)["input_ids"]) for row in rows]
    assert (round(sum(lengths) / len(lengths)), max(lengths)) == timing.PROMPTS["microcosm"]


def test_the_measurement_at_the_end_is_of_any_suite_that_a_recipe_names():
    math = wanted("evaluation.suite=math", "evaluation.heldout_prompts=0", "evaluation.limit=100")
    models = memory.Models(SHAPE, ((SHAPE, "none"),))
    sizes = memory.Sizes(math.rollout.batch, 1, 1, "folded")

    def both_arms(questions, tokens):
        long = wanted(f"rollout.max_tokens={tokens}")
        return 2 * timing.rollout_seconds(long, SHAPE, GPU, sizes, questions)

    # MATH-500, GSM8K, and eight answers to each of the 30, 30 and 40 questions of AIME 24, AIME 25 and AMC 23
    expected = both_arms(100, 3072) + both_arms(100, 1024) + 2 * both_arms(240, 4096) + both_arms(320, 4096)
    assert timing.measurement_seconds(math, models, GPU, "folded") == pytest.approx(expected)
