"""What needs a CUDA GPU; elsewhere it is skipped with the reason."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from grlo_lite import plan
from grlo_lite.generation import engines
from grlo_lite.generation.llama import grouped_attention
from grlo_lite.machine import device
from grlo_lite.models import chat_template
from grlo_lite.models import policy as policies
from grlo_lite.models.backends import Place
from grlo_lite.planning import cards, this_machine
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe.schema import Lora, Model
from grlo_lite.rundir import files

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")]


@pytest.mark.parametrize("backend", ["transformers", "unsloth"])
def test_the_microcosm_learns_on_a_gpu(train, tmp_path, backend):
    if backend == "unsloth" and find_spec("unsloth") is None:
        pytest.skip("Unsloth is not installed")
    path = tmp_path / "r"
    train("--run-dir", path, f"backend={backend}", cwd=tmp_path)
    assert json.loads((path / "evaluation.json").read_text())["average"]["difference"] >= 0.25
    assert all(line["peak_vram_gib"] > 0 for line in files.read_lines(path / "metrics.jsonl"))
    assert json.loads((path / "summary.json").read_text())["gpu_hours"] > 0


@pytest.mark.parametrize("engine", ["generate", "compact", "folded"])
@pytest.mark.parametrize("backend", ["transformers", "unsloth"])
def test_every_engine_runs_with_every_backend(train, tmp_path, backend, engine):
    if backend == "unsloth" and find_spec("unsloth") is None:
        pytest.skip("Unsloth is not installed")
    path = tmp_path / "r"
    words = ("budget.steps=2", "evaluation.suite=none", "evaluation.heldout_prompts=0", "optimizer.name=adamw_8bit")
    train("--run-dir", path, f"backend={backend}", f"rollout.engine={engine}", *words, cwd=tmp_path)
    assert len(files.read_lines(path / "metrics.jsonl")) == 2


class NothingHalved:
    def smallest(self, phase):
        return None


@pytest.mark.parametrize("fold", [False, True])
def test_the_engine_answers_as_generate_does_on_a_gpu(fold):
    made = policies.load(Model(name="microcosm"), Lora(rank=16, alpha=32), Place(device.this_device()), 256, 0)
    assert {p.dtype for p in made.model.parameters() if p.requires_grad} == {torch.float32}
    text = chat_template.formatted(made.tokenizer, [{"role": "user", "content": "Tell me about the river."}])
    batch = made.tokenizer([text] * 16, return_tensors="pt", add_special_tokens=False).to("cuda")
    config = made.model.generation_config
    config.max_new_tokens, config.do_sample = 32, False
    with torch.no_grad():
        plain = made.model.generate(**batch, generation_config=config)
        recipe = recipes.load("microcosm", [])
        with engines.rollouts(recipe, made.model, "folded" if fold else "compact", NothingHalved()):
            ours = made.model.generate(**batch, generation_config=config)
    assert (ours == plain).float().mean() > 0.8  # in 16 bits, near ties may tip


def test_grouped_attention_in_16_bits_is_sdpa_in_fp32():
    torch.manual_seed(0)
    query, key, value = (torch.randn(s, device="cuda") for s in ((5, 32, 1, 128), (5, 8, 300, 128), (5, 8, 300, 128)))
    mask = (torch.arange(300, device="cuda") >= torch.tensor([0, 3, 60, 9, 299], device="cuda")[:, None])[:, None, None]
    halves = [tensor.to(device.float_dtype("cuda")) for tensor in (query, key, value)]
    room = torch.empty(5, 8, 512, 128, device="cuda", dtype=halves[0].dtype)  # keys as the cache has them: a view
    room[:, :, :300] = halves[1]
    answer = grouped_attention(halves[0][:, :, 0], room[:, :, :300], halves[2], ~mask, 128**-0.5)
    wanted = scaled_dot_product_attention(*(t.float() for t in halves), attn_mask=mask, enable_gqa=True)
    assert (answer.reshape(5, 32, 128).float() - wanted[:, :, 0]).abs().max() < 0.02


def test_a_cap_of_memory_is_what_the_engine_and_the_scorer_go_by():
    free = device.free_bytes("cuda")
    torch.cuda.set_per_process_memory_fraction(0.25)
    try:
        assert device.free_bytes("cuda") <= 0.25 * torch.cuda.get_device_properties(0).total_memory
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert device.free_bytes("cuda") >= 0.9 * free


def test_the_probe_measures_this_card(tmp_path, monkeypatch):
    monkeypatch.setenv("GRLO_LITE_PROBES", str(tmp_path / "probes.json"))
    plan.main(["qwen3-0.6b-8gb", "--probe"])
    card, sheet = this_machine.this_card(), cards.known_cards().values()
    assert card.measured
    assert card.flops <= 1.1 * max(known.flops / 0.3 for known in sheet)
    assert 0.2 < card.activation_share < 3
    assert 4 < card.logit_bytes < 40
    assert 0 < card.context < 8 * 2**30
    assert 0 < card.dense_layer_seconds <= card.layer_seconds < 0.05


def test_the_full_shape_benchmark_measures_memory_by_phase(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "full_shape.py"
    words = ["--shape", "microcosm", "--steps", "2", "--cap-gib", "8", "--out", str(tmp_path)]
    subprocess.run([sys.executable, str(script), *words], check=True)
    result = json.loads(next(tmp_path.glob("microcosm-*.json")).read_text())
    assert result["device"] == torch.cuda.get_device_name()
    for side in result["sides"].values():
        assert all(0 < side[f"{phase}_peak_gib"] < 8 for phase in ("rollout", "reward", "update"))
