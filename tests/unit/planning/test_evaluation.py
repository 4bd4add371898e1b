"""What an evaluation takes: answers' lengths and loads by hand, and seconds on a card whose rates are round numbers."""

import math
from dataclasses import replace

import pytest

from grlo_lite import plan
from grlo_lite.evaluation.tasks import suites
from grlo_lite.models import names
from grlo_lite.models.chat_template import formatted, load_tokenizer
from grlo_lite.planning import answer_lengths, cards, evaluation, timing
from grlo_lite.planning.answer_lengths import Lengths
from grlo_lite.planning.evaluation import Load, Setting
from grlo_lite.recipe import loading as recipes
from grlo_lite.rundir import files
from grlo_lite.rundir.layout import RunDir
from tests.unit.planning.round_numbers import CPU, LINEAR, SHAPE

SETTING = Setting(recipes.load("microcosm", []), SHAPE, CPU)
COPYING = 6 * (4 * LINEAR / 1e7 + 4 * LINEAR / 1e6 + LINEAR / 1e6)


def test_lengths_of_answers_of_which_half_were_cut_off_at_40():
    """One in 60 tokens ends an answer: half of them within 30 tokens on average."""
    half = Lengths(30, 0.5, 40)
    assert half.mean(40) == 30
    assert half.mean(100) == pytest.approx(30 + 0.5 * 60 * (1 - math.exp(-1)))
    assert half.mean(20) == pytest.approx(30 * (1 - math.exp(-1 / 3)) / (1 - math.exp(-2 / 3)))
    assert half.most(20, 1000) == pytest.approx(40 + 60 * (math.log(10) + 0.5772))
    assert (half.most(20, 100), half.most(20, 40), half.most(1, 30)) == (100, 40, 30)
    never = Lengths(48, 1, 48)
    assert (never.mean(48), never.mean(96), never.mean(12), never.most(5, 96)) == (48, 96, 12, 96)
    always = Lengths(10, 0, 14)
    assert (always.mean(48), always.most(300, 48)) == (10, 14)


def test_lengths_are_those_of_the_newest_evaluation_else_of_training(tmp_path):
    run = RunDir(tmp_path)
    assert answer_lengths.heard(run) == ({}, answer_lengths.ASSUMED)
    run.recipe.write_text(recipes.dumped(recipes.load("microcosm", [])))
    steps = [{"truncated_fraction": 0.75, "completion_tokens_mean": 40}]
    steps.append({"truncated_fraction": 0.0, "completion_tokens_mean": 20})
    files.append_lines(run.metrics, steps)
    found, _ = answer_lengths.heard(run)
    assert answer_lengths.of(found, "math", "base_plain") == Lengths(40, 0.75, 48)
    assert answer_lengths.of(found, "math", "tuned_2") == Lengths(20, 0, 48)
    said = [("math", "base", 9, False), ("math", "base", 11, False)]
    said += [("chat", "base", 30, True), ("chat", "base", 10, False), ("chat", "tuned", 5, False)]
    rows = [dict(zip(("task", "arm", "tokens", "truncated"), row, strict=True)) for row in said]
    files.append_lines(run.answers, [*rows, {"task": "arc", "arm": "base", "log_probabilities": [[-1.0, False]]}])
    found, _ = answer_lengths.heard(run)
    assert answer_lengths.of(found, "math", "base") == Lengths(10, 0, 11)
    assert answer_lengths.of(found, "other", "base") == Lengths(15, 0.25, 30)
    assert answer_lengths.of(found, "other", "tuned") == Lengths(5, 0, 5)


def test_answers_take_a_copy_the_prompts_and_a_pass_a_token():
    load = Load("t", "base", 10, prompt_tokens=100, answers=10, answer_tokens=200, longest=50, most=40)
    like = recipes.load("microcosm", ["rollout.max_tokens=40", "prompts.max_tokens=40", "prompts.source=mine.jsonl"])
    prefill = timing.forward(like, SHAPE, CPU, 100, 10, adapted=False).seconds(CPU)
    a_token = timing.token_seconds(like, SHAPE, CPU, "folded", 200 / 40)
    assert evaluation.seconds(load, SETTING) == pytest.approx(COPYING + prefill + 40 * a_token)
    two_at_once = replace(SETTING, budget=120)  # of 10 + 50 padded tokens
    a_token = timing.token_seconds(like, SHAPE, CPU, "folded", 200 / 200)
    assert evaluation.seconds(load, two_at_once) == pytest.approx(COPYING + prefill + 5 * 40 * a_token)


def test_texts_are_read_once_with_logits_everywhere():
    load = Load("t", "base", 10, scored_tokens=300)
    work = timing.forward(SETTING.recipe, SHAPE, CPU, 300, 30, adapted=False).seconds(CPU)
    head = 2 * 300 * 1000 * 64 / 1e9 + 20 * 300 * 1000 / 1e7
    assert evaluation.seconds(load, SETTING) == pytest.approx(COPYING + work + head + 2 * 0.004)


def test_a_card_decodes_as_many_tokens_together_as_its_memory_holds():
    """Qwen3-4B on 24 GiB: a copy of 7.3 GB beside 2.7 GB of weights, and 147,456 bytes a token of what is left."""
    here = evaluation.setting(recipes.load("qwen3-4b-24gb", []), cards.known_card("rtx4090"))
    assert here.copy == 2 * 36 * (2560 * 4096 * 2 + 2560 * 1024 * 2 + 3 * 2560 * 9728)
    assert here.padded_tokens == int(0.6 * (here.free - here.copy) / (2 * 36 * 8 * 128 * 2))
    assert 40_000 < here.padded_tokens < 60_000
    small = replace(here, card=replace(here.card, vram=8 * 2**30))
    assert small.copy == 0
    assert replace(here, budget=1000).padded_tokens == 1000


def test_the_questions_of_the_kits_own_tasks_are_counted():
    tokenizer = load_tokenizer(str(names.POLICY), "main")
    task = suites.SUITES["microcosm"][0]
    questions = task.questions([])[:7]
    base, plain = evaluation.own_loads([(task, questions)], tokenizer, ("base", "base_plain"), {})
    texts = [formatted(tokenizer, [{"role": "user", "content": q.prompt}]) for q in questions]
    assert base.prompt_tokens == sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    assert plain.prompt_tokens < base.prompt_tokens
    assert (base.questions, base.answers, base.answer_tokens, base.longest) == (7, 7, 7 * 24, 48)


def test_plan_names_the_evaluations_share(capsys):
    assert plan.main(["qwen3-4b-24gb", "--gpu", "rtx4090", "evaluation.suite=quick"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("of it base against tuned at its end: ")
    assert ", grlo " in line
    assert line.count("$") == 2


def test_a_suite_by_task_and_arm_with_what_a_limit_makes_of_it(capsys):
    assert plan.main(["qwen3-4b-24gb", "--gpu", "rtx4090", "--evaluate", "grlo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("gsm8k")] == ["base", "tuned", "base"]
    assert [line.split()[1] for line in lines if line.startswith("--limit")] == ["50:", "200:", "500:"]
