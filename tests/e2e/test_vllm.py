"""vLLM as a rollout engine, on a CPU: the same model, learning, swaps, drift, death. `.ci/run` has its environment."""

import json
import os
import resource
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from grlo_lite import train
from grlo_lite.cli import run_command
from grlo_lite.rundir import files

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")]
SHORT = ("rollout.engine=vllm", "evaluation.suite=none", "evaluation.heldout_prompts=0", "budget.checkpoint_every=1")


def in_process(*words):
    return run_command(lambda: train.main([str(word) for word in words]))


def stirred(model, seed):
    """Gives the adapter weights that do something."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)


def decoded(model, ids, sampling, tokenizer):
    from grlo_lite.generation.decoding import Answers, Prompts, decode
    from grlo_lite.generation.twin import twin

    asked = Prompts(ids, torch.ones_like(ids).bool(), model.generation_config.eos_token_id, tokenizer.pad_token_id)
    answers = Answers(asked, sampling)
    with twin(model, True) as made:
        decode(made, asked, answers, len(ids))
    return answers.rows(), answers.logp_BT


@pytest.mark.parametrize("weights", ["adapter", "folded"])
def test_it_is_the_policy_over_twenty_swaps_and_leaves_the_process_as_it_was(weights):
    from grlo_lite.generation.request import Sampling
    from grlo_lite.generation.vllm_engine import Room, Vllm
    from grlo_lite.models import policy as policies
    from grlo_lite.models.backends import Place
    from grlo_lite.recipe import loading as recipes

    recipe = recipes.load("microcosm", [])
    policy = policies.load(recipe.model, recipe.lora, Place(torch.device("cpu")), 160, 0)
    model, ends = policy.model.eval(), policy.model.generation_config.eos_token_id
    ids = torch.randint(10, 500, (4, 70), generator=torch.Generator().manual_seed(3))
    sampling, seeds = Sampling(40, 0.0), range(4)
    words, threads, set_threads, drawn = (
        dict(os.environ),
        torch.get_num_threads(),
        torch.set_num_threads,
        torch.get_rng_state(),
    )
    vllm = Vllm(model, recipe.lora.rank, Room(4, 160, 2**24), 1.0, weights == "folded")
    try:
        peaks = []
        for swap in range(20):
            stirred(model, swap)
            before = torch.get_rng_state()
            vllm.take()
            said = vllm.said(ids.tolist(), ends, sampling, seeds)
            assert torch.equal(torch.get_rng_state(), before)
            rows, logp_BT = decoded(model, ids, sampling, policy.tokenizer)
            assert [one.tokens for one in said] == rows
            for row, one in enumerate(said):
                assert torch.tensor(one.logps) == pytest.approx(logp_BT[row, : len(one.logps)].numpy(), abs=1e-4)
            if weights == "adapter":
                with model.disable_adapter():
                    rows, _ = decoded(model, ids, sampling, policy.tokenizer)
                assert [one.tokens for one in vllm.said(ids.tolist(), ends, sampling, seeds, adapted=False)] == rows
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        assert peaks[-1] - peaks[4] < 20  # MiB
        once = vllm.said(ids.tolist(), ends, Sampling(40, 1.0), [7, 8, 9, 7])
        assert once == vllm.said(ids.tolist(), ends, Sampling(40, 1.0), [7, 8, 9, 7])
        assert once != vllm.said(ids.tolist(), ends, Sampling(40, 1.0), [1, 2, 3, 4])
    finally:
        vllm.close()
    torch.set_rng_state(drawn)
    assert dict(os.environ) == words
    assert (torch.get_num_threads(), torch.set_num_threads) == (threads, set_threads)


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
