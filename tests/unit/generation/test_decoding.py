"""The decoding loop: what is drawn, in what order rows come and go, and that both change nothing of what is said."""

import itertools
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from grlo_lite.generation import kv_cache, llama
from grlo_lite.generation.answers import stopping_at
from grlo_lite.generation.decoding import Answers, Prompts, decode, of_like_length
from grlo_lite.generation.request import Sampling
from grlo_lite.generation.sampling import drawn, nucleus
from grlo_lite.generation.twin import twin
from tests.unit.generation.models import adapted, bare, generated


def said(model, asked, sampling, rows_at_once=1000, fold=True, watch=None):
    answers = Answers(asked, sampling)
    with twin(model, fold) as made:
        decode(made, asked, answers, rows_at_once, watch)
    return answers


@pytest.mark.parametrize("fold", [False, True])
def test_sampled_answers_have_the_models_distribution(fold):
    """Six tokens, two drawn: all 30 outcomes (an end is not followed by another token) against their probabilities."""
    model = adapted(bare("qwen3"))
    prompt_BP = torch.tensor([[2, 3, 4, 5], [1, 1, 3, 2]])  # the second is two tokens long, padded on the left
    mask_BP = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]).bool()
    asked = Prompts(prompt_BP.repeat_interleave(3000, 0), mask_BP.repeat_interleave(3000, 0), [0], 1)
    torch.manual_seed(1)
    tokens_BT = said(model, asked, Sampling(2, 0.7), fold=fold).tokens_BT
    for row, prompt in enumerate(([2, 3, 4, 5], [3, 2])):
        expected = probabilities(model, prompt, temperature=0.7, end=0, pad=1)
        counts = Counter(tuple(pair) for pair in tokens_BT[row * 3000 : row * 3000 + 3000].tolist())
        assert set(counts) <= set(expected)
        of_all = 3000 / sum(expected.values())
        assert chisquare([counts[pair] for pair in expected], [p * of_all for p in expected.values()]).pvalue > 0.001


def probabilities(model, prompt, temperature, end, pad):
    """Of every pair of tokens that may follow a prompt; after the end comes padding."""
    with torch.no_grad():
        first = (model(input_ids=torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
        seconds = model(input_ids=torch.tensor([[*prompt, token] for token in range(6)])).logits[:, -1]
    pairs = {
        (a, b): float(first[a] * p)
        for a, row in enumerate((seconds / temperature).softmax(-1))
        for b, p in enumerate(row)
    }
    return {(end, pad): float(first[end])} | {pair: p for pair, p in pairs.items() if pair[0] != end}


def test_a_token_is_the_one_at_which_the_cumulated_probabilities_pass_the_number():
    """Probabilities 0.1, 0.2, 0.3, 0.4; a vocabulary of more than a block, the rest impossible."""
    logits_SV = torch.full((6, 300), float("-inf"))
    logits_SV[:, [0, 127, 128, 299]] = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    uniform_S = torch.tensor([0.0, 0.0999, 0.1001, 0.301, 0.61, 1 - 2**-24])
    tokens_S, logp_S = drawn(logits_SV.clone(), uniform_S, Sampling(1))
    assert tokens_S.tolist() == [0, 0, 127, 128, 299, 299]
    assert torch.allclose(logp_S.exp(), torch.tensor([0.1, 0.1, 0.2, 0.3, 0.4, 0.4]))
    tokens_S, logp_S = drawn(logits_SV.clone(), uniform_S, Sampling(1, temperature=0.0))
    assert tokens_S.tolist() == [299] * 6
    assert torch.allclose(logp_S.exp(), torch.full((6,), 0.4))
    # at temperature 0.5 the probabilities go by their squares: 1, 4, 9 and 16 thirtieths
    tokens_S, logp_S = drawn(logits_SV.clone(), torch.tensor([0.03, 0.04, 0.16, 0.17, 0.46, 0.47]), Sampling(1, 0.5))
    assert tokens_S.tolist() == [0, 127, 127, 128, 128, 299]
    assert torch.allclose(logp_S.exp(), torch.tensor([1.0, 4.0, 4.0, 9.0, 9.0, 16.0]) / 30)


def test_the_nucleus_is_the_smallest_set_with_top_p_of_the_probability():
    weights_SV = torch.tensor([[1.0, 4.0, 2.0, 3.0], [7.0, 1.0, 1.0, 1.0]])
    assert nucleus(weights_SV, 0.65).tolist() == [[0, 4, 0, 3], [7, 0, 0, 0]]
    assert nucleus(weights_SV, 0.75).tolist()[0] == [0, 4, 2, 3]
    assert nucleus(weights_SV, 0.1).tolist() == [[0, 4, 0, 0], [7, 0, 0, 0]]


def test_top_p_leaves_out_what_transformers_leaves_out():
    model = adapted(bare("qwen3"))
    ids_BP, mask_BP = torch.full((400, 1), 2), torch.ones(400, 1, dtype=torch.bool)
    options = {"do_sample": True, "top_k": 0, "top_p": 0.5, "eos_token_id": [0], "pad_token_id": 1}
    plain = {row[1] for row in generated(model, ids_BP, mask_BP, 1, **options).tolist()}
    ours = {row[0] for row in said(model, Prompts(ids_BP, mask_BP, [0], 1), Sampling(1, 1.0, 0.5)).tokens_BT.tolist()}
    assert ours == plain
    assert len(plain) < 6


def test_what_a_row_says_depends_neither_on_its_neighbours_nor_on_how_many_are_decoded_together():
    model = adapted(bare("qwen3", vocab_size=40))
    torch.manual_seed(0)
    asked = Prompts(torch.randint(4, 40, (20, 6)), torch.ones(20, 6, dtype=torch.bool), [0, 1, 2, 3], 1)
    whole = []
    for rows in (20, 7, 1):
        torch.manual_seed(5)
        whole.append(said(model, asked, Sampling(25), rows))
    assert len(set(whole[0].length_B.tolist())) > 4
    for other in whole[1:]:
        assert torch.equal(other.tokens_BT, whole[0].tokens_BT)


def test_long_runs_of_refills_drop_old_columns_and_stay_exact(monkeypatch):
    """A cache that grows and is cut often, many more prompts than slots."""
    monkeypatch.setattr(kv_cache, "ROOM", 4)
    monkeypatch.setattr("grlo_lite.generation.decoding.ROOM", 4)
    for kind in ("llama", "gemma3"):
        model = adapted(bare(kind, vocab_size=40))
        torch.manual_seed(3)
        ids_BP = torch.randint(8, 40, (24, 9))
        mask_BP = torch.arange(9) >= torch.randint(0, 7, (24, 1))
        ends = list(range(8))
        plain = generated(model, ids_BP, mask_BP, 30, eos_token_id=ends, pad_token_id=1)
        answers = said(model, Prompts(ids_BP, mask_BP, ends, 1), Sampling(30, 0.0), 5)
        assert torch.equal(torch.cat([ids_BP, answers.tokens_BT], 1), plain)


def says_what_generate_says(kind, rows_at_once):
    """Of 24 prompts of 3 to 28 tokens, greedily."""
    model = adapted(bare(kind, vocab_size=40))
    torch.manual_seed(3)
    ids_BP = torch.randint(8, 40, (24, 30))
    mask_BP = torch.arange(30) >= torch.randint(2, 28, (24, 1))
    ends = list(range(8))
    plain = generated(model, ids_BP, mask_BP, 12, eos_token_id=ends, pad_token_id=1)
    answers = said(model, Prompts(ids_BP, mask_BP, ends, 1), Sampling(12, 0.0), rows_at_once)
    assert torch.equal(torch.cat([ids_BP, answers.tokens_BT], 1), plain)


@pytest.mark.parametrize("run_bytes", [0, 3000])
@pytest.mark.parametrize("rows_at_once", [24, 5])
def test_rows_that_attend_in_runs_say_what_they_say_together(monkeypatch, run_bytes, rows_at_once):
    monkeypatch.setattr(llama, "RUN_BYTES", run_bytes)
    made, runs = [], llama._runs
    monkeypatch.setattr(llama, "_runs", lambda *given: made.append(runs(*given)) or made[-1])
    says_what_generate_says("qwen3", rows_at_once)
    assert max(map(len, made)) > 2


def test_runs_read_every_column_of_a_row_and_little_padding(monkeypatch):
    monkeypatch.setattr(llama, "RUN_BYTES", 100)
    torch.manual_seed(0)
    for lengths in ([1] * 8, [1, 2, 3, 50, 51, 60], [60, 1, 60, 1], torch.randint(1, 60, (50,)).tolist()):
        begin = [60 - length for length in lengths]
        mask_BW = torch.arange(60) >= torch.tensor(begin)[:, None]
        runs = llama._runs(mask_BW, 4)
        assert [row for run in runs for row in range(run.rows.start, run.rows.stop)] == list(range(len(lengths)))
        for rows, first, hidden in runs:
            assert first == min(begin[rows])
            assert torch.equal(hidden[:, 0, 0], ~mask_BW[rows, first:])
            assert hidden.sum() <= 100 / 4
        for before, after in itertools.pairwise(runs):  # none ends too early
            joined = begin[before.rows.start : after.rows.start + 1]
            assert sum(joined) - min(joined) * len(joined) > 100 / 4


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize("rows_at_once", [24, 5])
def test_prompts_read_in_groups_of_like_length_are_answered_as_those_read_together(monkeypatch, kind, rows_at_once):
    monkeypatch.setattr("grlo_lite.generation.decoding.GROUP_TOKENS", 1)
    says_what_generate_says(kind, rows_at_once)


def test_prompts_are_grouped_with_the_least_padding_and_passes(monkeypatch):
    """Against every way to cut the lengths, longest first, into groups."""
    monkeypatch.setattr("grlo_lite.generation.decoding.GROUP_TOKENS", 10)
    lengths = [40, 3, 9, 38, 41, 8, 20, 3]

    def cost(groups):
        return sum(10 + len(group) * max(group) for group in groups)

    longest_first, ways = sorted(lengths, reverse=True), []
    for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
        bounds = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(lengths)]
        ways.append([longest_first[a:b] for a, b in itertools.pairwise(bounds)])
    groups = of_like_length(lengths)
    assert sorted(i for group in groups for i in group) == list(range(8))
    assert cost([[lengths[i] for i in group] for group in groups]) == min(map(cost, ways))


def test_rows_that_all_end_at_once_leave_the_prompts_as_they_were():
    model = adapted(bare("qwen3"))
    ids_BP, mask_BP = torch.randint(2, 6, (9, 3)), torch.ones(9, 3, dtype=torch.bool)
    answers = said(model, Prompts(ids_BP, mask_BP, list(range(6)), 1), Sampling(4, 0.0), 2)
    assert answers.tokens_BT.shape == (9, 1)
    assert answers.length_B[:9].tolist() == [1] * 9


def test_a_watcher_sees_every_token_of_every_row_and_ends_rows():
    model = adapted(bare("qwen3", vocab_size=40))
    torch.manual_seed(0)
    asked = Prompts(torch.randint(4, 40, (6, 5)), torch.ones(6, 5, dtype=torch.bool), [0], 1)
    seen = {row: [] for row in range(6)}

    def watch(rows, tokens):
        for row, token in zip(rows, tokens, strict=True):
            seen[row].append(token)
        return {2, 3} if len(seen[2]) == 3 else ()

    answers = said(model, asked, Sampling(12), 4, watch=watch)
    for row in range(6):
        assert answers.said_BT[row, : answers.length_B[row]].tolist() == seen[row]
    assert answers.length_B[2] == 3
    assert max(answers.length_B[:6].tolist()) == 12


class Letters:
    """A tokenizer of letters: a is 4, b is 5 …"""

    def decode(self, ids, **_):
        return "".join(chr(ord("a") + i - 4) for i in ids)


def test_a_row_ends_with_the_token_that_completes_a_stop_text():
    watch = stopping_at(Letters(), ("bcd", "zz"))
    ended = [set(watch([0, 1], [4 + a, 4 + b])) for a, b in ((1, 3), (2, 25), (3, 25))]
    assert ended == [set(), set(), {0, 1}]


def test_two_arms_in_one_batch_say_what_each_says_alone():
    model = adapted(bare("qwen3", vocab_size=300))
    torch.manual_seed(0)
    ids_BP = torch.randint(4, 300, (3, 6))
    mask_BP = torch.ones(3, 6, dtype=torch.bool)
    both = Prompts(ids_BP.repeat(2, 1), mask_BP.repeat(2, 1), [0], 1, torch.tensor([0.0] * 3 + [1.0] * 3))
    for fold in (True, False):
        answers = Answers(both, Sampling(15, 0.0))
        with twin(model, fold, beside="default") as made:
            decode(made, both, answers, 2)
        with model.disable_adapter():
            base = generated(model, ids_BP, mask_BP, 15, eos_token_id=[0], pad_token_id=1)
        tuned = generated(model, ids_BP, mask_BP, 15, eos_token_id=[0], pad_token_id=1)
        assert torch.equal(answers.tokens_BT, torch.cat([base, tuned])[:, 6:])
        assert not torch.equal(base, tuned)
