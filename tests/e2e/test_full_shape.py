"""benchmarks/full_shape.py, at the microcosm's shape: both sides run, do the same work, and are told apart."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from grlo_lite.recipe import loading as recipes

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "full_shape.py"


@pytest.fixture(scope="module")
def full_shape(benchmark_script):
    return benchmark_script("full_shape")


@pytest.mark.slow
def test_both_sides_do_the_work_and_the_phases_add_up(tmp_path):
    words = ["--shape", "microcosm", "--steps", "2", "--engine", "folded", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(next(tmp_path.glob("microcosm-*.json")).read_text())
    for side in result["sides"].values():
        assert side["rollout_seconds"] > side["reward_seconds"] > 0
        assert sum(side[f"{phase}_share"] for phase in ("rollout", "reward", "update")) == pytest.approx(1, abs=0.2)
        assert 16 * 8 < side["completion_tokens"] < 16 * 50
    assert result["ours_over_trl"]["step_seconds"] < 1
    assert "| ours | " in done.stdout
    assert all(result["plan"][f"{phase}_gib"] > 0 for phase in ("load", "rollout", "reward", "update"))
    assert str(SCRIPT.parent.parent) not in json.dumps(result["sides"])


@pytest.mark.slow
def test_the_longest_texts_are_as_long_as_the_recipe_allows(tmp_path):
    words = ["--shape", "microcosm", "--longest", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(next(tmp_path.glob("microcosm-longest-*.json")).read_text())
    limits = recipes.load("microcosm", [])
    ours = result["sides"]["ours"]
    assert ours["completion_tokens"] == 16 * limits.rollout.max_tokens
    read = ours["reward_tokens_a_second"] * ours["reward_seconds"] - ours["completion_tokens"]
    assert read == pytest.approx(16 * (limits.prompts.max_tokens - 5))  # the template has the rest
    assert result["out_of_memory"] == []


def test_the_longest_texts_of_a_shipped_recipe(full_shape):
    arguments = argparse.Namespace(shape="qwen3-4b-24gb", longest=True)
    assert full_shape.limits(arguments) == {"prompts": 1024, "completions": 1024, "micro": "auto"}
    shortest, longest = full_shape.prompt_words(arguments)
    [prompt] = full_shape.random_prompts(151_936, shortest, longest, 1)
    asked = [{"role": "user", "content": prompt}]
    made = full_shape.tokenizer(151_936)
    assert len(made.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]) == 1024


def test_the_tokenizer_gives_back_the_words_it_decoded(full_shape):
    made = full_shape.tokenizer(151_936)
    assert len(made) == 151_936
    ids = torch.randint(len(full_shape.SPECIAL), 151_936, (200,)).tolist()
    assert made(made.decode(ids))["input_ids"] == ids
    asked = made.apply_chat_template([{"role": "user", "content": "w9"}], add_generation_prompt=True)["input_ids"]
    assert made.convert_ids_to_tokens(asked)[-2:] == ["<|im_start|>", "assistant"]


def test_lengths_are_log_normal_whatever_the_row_stands_beside(full_shape):
    firsts = torch.arange(6, 50_006)
    lengths = full_shape.length_of(firsts, 50_006, 300, 900).numpy()
    assert np.median(lengths) == pytest.approx(300, rel=0.01)
    assert np.percentile(lengths, 95) == pytest.approx(900, rel=0.02)
    process = full_shape.ending({"tokens": (8, 4, 8, 16)})
    prompt = [1, 3, 9, 2, 1, full_shape.ANSWERER]
    first = 300
    length = int(full_shape.length_of(torch.tensor([first]), 768, 4, 8))
    for said in range(1, length):
        ids_BT = torch.tensor([[0, 0, *prompt, first, *[70] * (said - 1)], [*prompt, first, *[70] * (said + 1)]])
        scores_BV = process(ids_BT, torch.zeros(2, 768))
        ends = scores_BV.argmax(1) == full_shape.END
        assert ends.tolist() == [said + 1 >= length, said + 3 >= length]
        assert scores_BV[~ends].softmax(-1)[:, : len(full_shape.SPECIAL)].sum() == 0
