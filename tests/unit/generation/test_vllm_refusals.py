"""What is asked of vLLM that cannot be had: a line, before anything is loaded. Needs no vLLM."""

from types import SimpleNamespace

import pytest
import torch

from grlo_lite import evaluate, train
from grlo_lite.app import command as app
from grlo_lite.cli import run_command
from grlo_lite.errors import BadInput, DoesNotFit, EngineFailed
from grlo_lite.generation import decoders
from grlo_lite.generation.decoding import Answers, Prompts
from grlo_lite.generation.dense_base import dense_tensors
from grlo_lite.generation.request import Sampling
from grlo_lite.generation.vllm_engine import Room, Said, _step, filled, fitting
from grlo_lite.models import names, vllm_here
from grlo_lite.recipe import loading as recipes
from grlo_lite.training.sampler_drift import completions_own, corrected, drift_metrics
from tests.unit.generation.models import adapted, bare


def required(monkeypatch, *words, version="0.32.0"):
    monkeypatch.setattr(vllm_here.importlib.util, "find_spec", lambda name: version and object())
    monkeypatch.setattr(vllm_here, "installed", lambda name: version)
    vllm_here.require_vllm(recipes.load("microcosm", ["rollout.engine=vllm", *words]))


def test_a_vllm_that_is_known_is_taken(monkeypatch):
    required(monkeypatch, "rollout.top_p=0.9", version="0.32.0+cpu")


@pytest.mark.parametrize(
    ("words", "version", "said"),
    [
        ((), None, "vLLM is not installed; pip install"),
        ((), "0.25.1", r"vLLM 0\.25\.1 is installed"),
        (("lora.rank=600",), "0.32.0", "lora.rank=600 is above vLLM's maximum of 512"),
        (("lora.train_stop_tokens=true",), "0.32.0", "train_stop_tokens"),
        (("rollout.top_p=0.9", "rollout.temperature=0.7"), "0.32.0", "leave one of them at 1"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_mend(monkeypatch, words, version, said):
    with pytest.raises(BadInput, match=said) as refused:
        required(monkeypatch, *words, version=version)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "version", "said"),
    [
        ((), None, "vLLM is not installed"),
        ((), "0.25.1", "vLLM 0.25.1 is installed"),
        (("lora.rank=600",), "0.32.0", "above vLLM's maximum"),
    ],
)
def test_a_command_that_cannot_have_it_ends_in_one_line(monkeypatch, tmp_path, capsys, words, version, said):
    monkeypatch.setattr(vllm_here.importlib.util, "find_spec", lambda name: version and object())
    monkeypatch.setattr(vllm_here, "installed", lambda name: version)
    commands = [lambda: train.main(["--run-dir", str(tmp_path / "r"), "rollout.engine=vllm", *words])]
    if not words:
        commands += [lambda: evaluate.main([str(names.DEMO), "--engine", "vllm"])]
        commands += [lambda: app.main(["--demo", "--engine", "vllm"])]
    for main in commands:
        assert run_command(main) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not (tmp_path / "r").exists()


def asked(rows, tokens=3):
    prompts = Prompts(torch.ones(rows, 4, dtype=torch.long), torch.ones(rows, 4, dtype=torch.bool), [0], 1)
    return prompts, Answers(prompts, Sampling(tokens, 0.0))


def test_the_adapter_that_is_in_effect_is_the_one_that_answers():
    model = adapted(bare("qwen3", vocab_size=40))
    assert decoders.adapter_in_effect(model) == "default"
    with model.disable_adapter():
        assert decoders.adapter_in_effect(model) is None
    model.add_adapter("other", model.peft_config["default"])
    model.set_adapter("other")
    assert decoders.adapter_in_effect(model) == "other"
    assert decoders.adapter_in_effect(bare("qwen3", vocab_size=40)) is None


def test_an_adapter_above_its_maximum_does_not_answer():
    model = adapted(bare("qwen3", vocab_size=40))
    assert decoders.largest_rank(model) == 4
    model.peft_config["default"].rank_pattern = {"q_proj": 600}
    with pytest.raises(BadInput, match="rank 600 is above vLLM's maximum of 512"):
        decoders.largest_rank(model)


def test_a_question_longer_than_its_cache_does_not_fit():
    model = adapted(bare("qwen3", vocab_size=40))
    by_vllm = decoders.ByVllm(model, 100)
    assert by_vllm._room().tokens == 64  # three blocks of 32, one of them vLLM's own
    by_vllm.vllm = SimpleNamespace(room=Room(1, 6, 1), take=lambda adapter: None, sleep=lambda: None)
    with by_vllm(model) as decodes, pytest.raises(DoesNotFit, match="up to 7 tokens, and the model with vLLM's cache"):
        decodes(*asked(1), 1, None)


def test_an_engine_that_does_not_start_names_the_other(monkeypatch):
    def failing(*_):
        raise EngineFailed("vLLM could not be started: no such architecture")

    monkeypatch.setattr(decoders, "Vllm", failing)
    model = adapted(bare("qwen3", vocab_size=40))
    refused = pytest.raises(BadInput, match="no such architecture; the kit's own decoder can answer")
    with decoders.decoding("vllm", model, 100) as decoding, decoding(model) as decodes, refused:
        decodes(*asked(1), 1, None)


class Engine:
    """Two requests that say 5, 6, 7, a token a step."""

    def __init__(self):
        self.left, self.aborted = {"0": [5, 6, 7], "1": [5, 6, 7]}, []

    def has_unfinished_requests(self):
        return bool(self.left)

    def step(self):
        outputs = []
        for name, tokens in list(self.left.items()):
            token = tokens.pop(0)
            logps = [{token: SimpleNamespace(logprob=-float(token))}]
            said = SimpleNamespace(token_ids=[token], logprobs=logps, finished=lambda left=tokens: not left)
            outputs.append(SimpleNamespace(request_id=name, outputs=[said]))
            if not tokens:
                del self.left[name]
        return outputs

    def abort_request(self, names):
        self.aborted += names
        for name in names:
            del self.left[name]


def test_a_watcher_is_told_of_each_token_and_ends_a_row():
    engine, told = Engine(), []

    def watch(rows, tokens):
        told.append((rows, tokens))
        return {5: [], 6: [1], 7: rows}[tokens[-1]]  # row 0 has ended by itself when it is told to

    said = [Said([], []), Said([], [])]
    _step(engine, said, watch)
    assert told == [([0, 1], [5, 5]), ([0, 1], [6, 6]), ([0], [7])]
    assert engine.aborted == ["1"]
    assert said == [Said([5, 6, 7], [-5.0, -6.0, -7.0]), Said([5, 6], [-5.0, -6.0])]
    _, answers = asked(2)
    filled(answers, said)
    assert answers.rows() == [[5, 6, 7], [5, 6]]
    assert answers.logp_BT[1].tolist() == [-5.0, -6.0, 0.0]


def test_completions_of_shorter_prompts_begin_sooner_where_unsloth_has_packed_them():
    packed = torch.tensor([[0.0, 0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 9.0, 9.0]])  # 3 tokens, 2 columns to spare
    mask = torch.tensor([[1, 1, 1], [0, 0, 1]])
    assert completions_own(packed, mask, 3).tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    assert completions_own(packed, mask, 5) is packed  # TRL's own are where they are


def test_a_cache_for_less_than_one_completion_does_not_fit():
    model = bare("qwen3", vocab_size=40)  # 2 layers × 2 × 2 heads × 16 numbers in fp32: 512 bytes a token
    assert fitting(model, Room(4, 64, 2**30)).cache_bytes == (4 * 64 + 32) * 512
    assert fitting(model, Room(4, 64, 96 * 512)).cache_bytes == 96 * 512
    with pytest.raises(DoesNotFit, match="does not hold one completion"):
        fitting(model, Room(4, 64, 96 * 512 - 1))


def test_more_tokens_than_the_model_reads_are_refused():
    with pytest.raises(BadInput, match="reads at most 128 tokens"):
        fitting(bare("qwen3", max_position_embeddings=128), Room(4, 129, 2**30))


@pytest.mark.parametrize("folded", [False, True])
def test_the_dense_tensors_are_a_checkpoint_of_the_base_and_folded_of_the_policy(folded):
    model = adapted(bare("qwen3", vocab_size=40))
    twin = bare("qwen3", vocab_size=40)
    tensors = dict(dense_tensors(model, torch.float32, folded))
    missing, unexpected = twin.load_state_dict(tensors, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    ids = torch.arange(8, 20)[None]
    with torch.no_grad():
        policys = model(ids).logits
        with model.disable_adapter():
            bases = model(ids).logits
        found = twin(ids).logits
    assert torch.allclose(found, policys if folded else bases, atol=1e-4)
    assert not torch.allclose(found, bases if folded else policys, atol=1e-2)


def test_drift_is_of_the_ratios_before_they_are_cut():
    found = drift_metrics(torch.tensor([0.0, 0.6931472, -0.6931472, 1.3862944]), torch.ones(4))
    assert found["sampler_logp_difference"] == pytest.approx(0.6931472)
    assert found["importance_ratio_mean"] == pytest.approx(7.5 / 4)
    assert found["importance_ratio_std"] == pytest.approx(1.3404757)
    assert (found["importance_ratio_min"], found["importance_ratio_max"]) == pytest.approx((0.5, 4.0))
    assert found["importance_clipped_fraction"] == 0.25
    assert drift_metrics(torch.zeros(0), torch.zeros(0)) == {}


def test_rloo_is_corrected_by_the_ratio_of_the_whole_completion():
    sampler = SimpleNamespace(newest=[Said([], logps) for logps in ([-1.0, -1.0], [-2.0], [-3.0, -3.0])])
    rollout = {
        "completion_mask": torch.tensor([[1, 1], [1, 0], [0, 0]]),
        "old_logps": torch.tensor([-2.6931472, 0.0, 0.0]),  # half as likely; e² times, cut at 3; masked
        "advantages": torch.tensor([2.0, 1.0, 5.0]),
    }
    drift = {"stale": 1.0}
    corrected(sampler, drift, rollout)
    assert rollout["advantages"].tolist() == pytest.approx([1.0, 3.0, 5.0])
    assert drift["sampler_logp_difference"] == pytest.approx((0.6931472 / 2 + 2.0) / 2)
    assert "stale" not in drift
