"""What a CPU computes in, and that `cpu_dtype` reaches the policy, the reward model, the trainer and the plan."""

from dataclasses import replace

import pytest
import torch

from grlo_lite.checks.machine import machine_checks
from grlo_lite.machine import device
from grlo_lite.models import loading as models
from grlo_lite.models.backends import Place
from grlo_lite.planning import this_machine
from grlo_lite.recipe import loading as recipes
from grlo_lite.training.trainer import _shared_options

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "multiplies"),
    [("fpu avx512f avx512_bf16", True), ("fpu amx_bf16 amx_tile", True), ("fpu avx2 avx512f", False), ("", False)],
)
def test_bf16_is_where_the_cpus_flags_say_so(flags, multiplies, tmp_path):
    said = tmp_path / "cpuinfo"
    said.write_text(f"processor\t: 0\nmodel name\t: amx_bf16 in a name is no flag\nflags\t\t: {flags}\nbugs\t\t:\n")
    assert device.cpu_multiplies_bf16(said) == multiplies
    assert not device.cpu_multiplies_bf16(tmp_path / "none")


@pytest.mark.parametrize("multiplies", [True, False])
def test_auto_goes_by_the_cpu_and_a_name_does_not(multiplies, monkeypatch):
    monkeypatch.setattr(device, "cpu_multiplies_bf16", lambda: multiplies)
    assert device.float_dtype(CPU) == device.float_dtype(CPU, "fp32") == torch.float32
    assert device.float_dtype(CPU, "bf16") == torch.bfloat16
    assert device.float_dtype(CPU, "auto") == (torch.bfloat16 if multiplies else torch.float32)


@pytest.mark.parametrize(
    ("cpu_dtype", "multiplies", "said"), [("fp32", True, "fp32"), ("auto", True, "bf16"), ("auto", False, "fp32")]
)
def test_the_doctor_says_in_what_the_recipe_computes_here(cpu_dtype, multiplies, said, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "cpu_multiplies_bf16", lambda: multiplies)
    (check,) = [check for check in machine_checks(tmp_path, cpu_dtype) if check.name == "bf16"]
    assert check.found == f"{said} on this CPU by cpu_dtype={cpu_dtype}"


def test_the_recipes_dtype_reaches_all_that_computes(tmp_path):
    recipe = recipes.load("microcosm", ["cpu_dtype=bf16", "backend=transformers"])
    policy = models.load_policy(recipe, Place(CPU, cpu_dtype=recipe.cpu_dtype))
    assert policy.model.dtype == torch.bfloat16
    assert {p.dtype for p in policy.model.parameters() if p.requires_grad} == {torch.float32}
    judge = models.load_judge(recipe, recipe.reward.judges[0], CPU).model
    assert judge.dtype == torch.bfloat16
    assert judge.score.weight.dtype == torch.float32
    assert _shared_options(recipe, tmp_path, CPU, 4)["bf16"]
    assert this_machine.cpu_card("bf16").float_bytes == 2


def test_the_microcosm_stays_in_fp32(tmp_path):
    recipe = recipes.load("microcosm", [])
    assert recipe.cpu_dtype == "fp32"
    assert not _shared_options(recipe, tmp_path, CPU, 4)["bf16"]
    assert this_machine.cpu_card().float_bytes == 4


def test_a_probe_in_bf16_is_not_taken_for_one_in_fp32(monkeypatch):
    plain = this_machine.cpu_card()
    monkeypatch.setattr(
        this_machine, "probed", lambda card, name, vram: replace(card, probed="x") if ", bf16" in name else card
    )
    assert this_machine.cpu_card("bf16").measured
    assert this_machine.cpu_card() == plain
