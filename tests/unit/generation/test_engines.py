"""A run's rollout engine: how it is chosen, put in the place of `generate`, and what it does where memory runs out."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen3Config

import grlo_lite
from grlo_lite.errors import BadInput, DoesNotFit
from grlo_lite.generation import decoding, engines
from grlo_lite.models import backends
from grlo_lite.recipe import loading as recipes
from tests.unit.generation.models import adapted, bare, generated

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Noted:
    """Halvings without a run."""

    def __init__(self):
        self.made = []

    def smallest(self, phase):
        return min((now for at, _, now in self.made if at == phase), default=None)

    def note(self, phase, was, now):
        self.made.append((phase, was, now))


@pytest.fixture
def model():
    return adapted(bare("qwen3", vocab_size=40))


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randint(8, 40, (12, 6)), torch.arange(6) >= torch.randint(0, 4, (12, 1))


SAMPLED = {"do_sample": True, "top_k": 0, "eos_token_id": list(range(8)), "pad_token_id": 1}
GREEDY = SAMPLED | {"do_sample": False, "top_k": None}


def recipe(*words):
    return recipes.load("microcosm", list(words))


def test_the_package_decodes_in_one_place():
    """There is no `x.generate(…)`: Transformers' TRL calls, vLLM's engine is stepped."""
    calls = []
    for file in Path(grlo_lite.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "generate":
                calls.append(file.name)
    assert calls == []
    loops = [file for file in Path(grlo_lite.__file__).parent.rglob("*.py") if "while slots.alive" in file.read_text()]
    assert [file.name for file in loops] == ["decoding.py"]


@pytest.mark.parametrize("engine", ["generate", "compact", "folded"])
@pytest.mark.parametrize("rows_at_once", ["auto", 5])
def test_every_engine_says_what_generate_says_and_leaves_it_as_it_was(model, batch, engine, rows_at_once):
    if (engine, rows_at_once) == ("generate", 5):
        pytest.skip("generate takes all rows at once")
    plain = generated(model, *batch, **GREEDY)
    model.train()  # as a trainer has it
    with engines.rollouts(recipe(f"rollout.rows_at_once={rows_at_once}"), model, engine, Noted()):
        assert "generate" in vars(model)
        assert torch.equal(generated(model, *batch, **GREEDY), plain)
    assert "generate" not in vars(model)
    assert torch.equal(generated(model, *batch, **GREEDY), plain)


def test_what_stood_in_the_place_of_generate_stands_there_again(model):
    model.generate = before = lambda **_: None
    with engines.rollouts(recipe(), model, "folded", Noted()):
        assert model.generate is not before
    assert model.generate is before


def test_a_base_arm_is_not_folded_into(model, batch):
    with model.disable_adapter():
        plain = generated(model, *batch, **GREEDY)
        with engines.rollouts(recipe(), model, "folded", Noted()):
            assert torch.equal(generated(model, *batch, **GREEDY), plain)
    assert not torch.equal(generated(model, *batch, **GREEDY), plain)


def out_of_memory_with(monkeypatch, refuses):
    """Decoding runs out of memory at its third token where `refuses(slots)`."""
    step = decoding.Slots._fed

    def limited(slots, tokens_S):
        if int(slots.count_S.max()) >= 2 and refuses(slots):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(slots, tokens_S)

    monkeypatch.setattr(decoding.Slots, "_fed", limited)


def test_out_of_memory_gives_up_the_copy_first_then_halves_the_rows_that_are_decoded_together(
    model, batch, monkeypatch
):
    torch.manual_seed(0)
    with engines.rollouts(recipe(), model, "folded", Noted()):
        whole = generated(model, *batch, **SAMPLED)
    noted, decoded = Noted(), []
    out_of_memory_with(monkeypatch, lambda slots: len(slots.row_S) > 3)
    original = decoding.Slots.__init__
    monkeypatch.setattr(
        decoding.Slots,
        "__init__",
        lambda s, t, p, r, size: decoded.append((len(r), size)) or original(s, t, p, r, size),
    )
    torch.manual_seed(0)
    with engines.rollouts(recipe(), model, "folded", noted):
        parts = generated(model, *batch, **SAMPLED)
        assert [phase for phase, _, _ in noted.made][:2] == ["dense copy", "rollout"]
        assert noted.made[0][2] == 0
        assert noted.made[-1] == ("rollout", 6, 3)
        left = [rows for rows, _ in decoded]
        assert left[0] == 12
        assert left[-1] < 12  # what had ended before is not said again
        decoded.clear()
        generated(model, *batch, **SAMPLED)
        assert decoded == [(12, 3)]  # the next rollout begins with what fitted
    assert torch.equal(parts, whole)  # a row's random numbers are its own


def test_where_not_even_one_row_fits_the_run_ends(model, batch, monkeypatch):
    out_of_memory_with(monkeypatch, lambda slots: True)
    with engines.rollouts(recipe(), model, "compact", Noted()), pytest.raises(DoesNotFit, match="a single completion"):
        generated(model, *batch, **SAMPLED)


def test_the_first_batch_is_compared_with_the_policy(model, batch):
    with engines.rollouts(recipe(), model, "folded", Noted()):
        generated(model, *batch, **SAMPLED)
    wrong = adapted(bare("qwen3", vocab_size=40))
    with engines.rollouts(recipe(), wrong, "folded", Noted()):
        mlp = wrong.get_base_model().model.layers[0].mlp
        mlp.register_forward_hook(lambda module, given, said: 1.2 * said)  # as a patch that errs
        with pytest.raises(BadInput, match="samples from another model"):
            generated(wrong, *batch, **SAMPLED)


def test_rows_that_fit_are_counted_by_cache_and_logits():
    config = Qwen3Config(
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151_936,
    )
    a_row = 37 * 2048 * 4096 + 16 * 151_936  # 36 layers and one that is copied, 2 × 8 × 128 numbers of 2 bytes a token
    a_row += 16 * (16 * 2560 + 8 * 9728)  # an eighth of a prompt of 128 tokens
    assert engines.rows_in(config, 10 * a_row, 2048, 16) == 10
    assert engines.rows_in(config, 10 * a_row - 1, 2048, 16) == 9
    assert engines.rows_in(config, -5, 2048, 16) == 0


@pytest.mark.parametrize(
    ("copy_rows", "wanted", "expected"), [(0, 64, (40, True)), (30, 64, (40, False)), (30, 10, (10, True))]
)
def test_folding_is_given_up_where_the_copy_leaves_room_for_too_few(model, copy_rows, wanted, expected, monkeypatch):
    """40 rows fit without the copy, which takes the room of `copy_rows` of them."""
    a_row = 10_000
    monkeypatch.setattr(engines, "rows_in", lambda config, free, *_: free // a_row)
    monkeypatch.setattr(engines, "free_bytes", lambda device: 40 * a_row * 10 // 9 + 2)
    monkeypatch.setattr(engines, "copy_bytes", lambda model: copy_rows * a_row)
    assert engines.rows_that_fit(model, True, wanted, 2048, 16) == expected


@pytest.mark.parametrize(
    ("engine", "backend", "device", "chosen"),
    [
        ("auto", "transformers", CPU, "folded"),
        ("auto", "transformers", GPU, "folded"),
        ("auto", "unsloth", CPU, "folded"),
        ("auto", "unsloth", GPU, "folded"),
        ("compact", "transformers", CPU, "compact"),
        ("compact", "unsloth", GPU, "compact"),
        ("generate", "unsloth", GPU, "generate"),
    ],
)
def test_the_engine_follows_from_backend_and_device(engine, backend, device, chosen, monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    assert backends.chosen_engine(engine, backend, "nf4", device) == chosen


def test_vllm_is_chosen_where_it_is_installed_beside_unsloth(monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object())
    assert backends.chosen_engine("auto", "unsloth", "nf4", GPU) == "fast_inference"
    assert backends.chosen_engine("auto", "transformers", "nf4", GPU) == "folded"


@pytest.mark.parametrize(
    ("engine", "backend", "why"),
    [
        ("fast_inference", "transformers", "merge the adapter into vLLM's and the policy's 4-bit weights and back"),
        ("fast_inference", "unsloth", "vLLM is not installed"),
    ],
)
def test_an_engine_that_cannot_be_had_is_refused_with_the_reason(engine, backend, why, monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=why):
        backends.chosen_engine(engine, backend, "nf4", GPU)


def test_the_entropy_of_a_rollout_is_the_mean_surprise_of_what_was_drawn():
    """Of the tokens up to each row's length; the last row is the one that is thrown away."""
    drawn = SimpleNamespace(
        logp_BT=torch.tensor([[-1.0, -2.0, -7.0], [-3.0, -7.0, -7.0], [-9.0, -9.0, -9.0]]),
        length_B=torch.tensor([2, 1, 3]),
    )
    assert engines.mean_surprise(drawn) == pytest.approx(2.0)


def test_a_rollout_leaves_its_entropy_for_a_trainer_that_logs_none(model, batch):
    """By the policy's own forward: the mean of -log p over the tokens up to each row's end."""
    ids_BP, mask_BP = batch
    with engines.rollouts(recipe(), model, "compact", Noted()):
        said = generated(model, *batch, **SAMPLED)
        found = model.generate.sampled_entropy
    tokens_BT = said[:, ids_BP.shape[1] :]
    ended_BT = torch.isin(tokens_BT, torch.arange(8)).long()
    drawn_BT = ended_BT.cumsum(1) == ended_BT
    mask = torch.cat([mask_BP, drawn_BT], 1).long()
    with torch.no_grad():
        logits = model(input_ids=said, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    logp_BT = logits[:, ids_BP.shape[1] - 1 : -1].log_softmax(-1).gather(-1, tokens_BT[..., None])[..., 0]
    assert found == pytest.approx(-float(logp_BT[drawn_BT].mean()), abs=1e-4)
