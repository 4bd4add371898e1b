"""A card without a driver, one that is too old, several ranks, no compiler: told, and not trained around."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from grlo_lite import cli, train
from grlo_lite.checks import machine as checks
from grlo_lite.checks.check import FAIL, NOT_APPLICABLE, PASS
from grlo_lite.errors import BadInput
from grlo_lite.generation import engines
from grlo_lite.machine import cuda, device
from grlo_lite.models.backends import Place
from grlo_lite.monitoring.halvings import Halvings
from grlo_lite.rundir import layout


@pytest.fixture
def beside_a_card(monkeypatch):
    """nvidia-smi sees a card, and PyTorch does not."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cuda, "command_output", lambda *words: "NVIDIA GeForce RTX 4090\nNVIDIA GeForce RTX 3090")
    monkeypatch.setattr(cuda, "driver", lambda: "550.54.14")


def test_a_build_for_cpus_beside_a_card_is_refused(beside_a_card, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(BadInput, match=r"sees NVIDIA GeForce RTX 4090, but PyTorch .* is a build for CPUs") as refused:
        cuda.require_usable_gpu()
    assert "\n" not in str(refused.value)


def test_a_driver_that_is_too_old_is_refused(beside_a_card, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(BadInput, match=r"driver 550\.54\.14 may be older than CUDA 13\.0 asks for"):
        cuda.require_usable_gpu()


def test_who_hides_the_card_means_the_cpu(beside_a_card, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cuda.require_usable_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(BadInput):
        cuda.require_usable_gpu()
    monkeypatch.setattr(cuda, "command_output", lambda *words: None)  # no card at all
    cuda.require_usable_gpu()


def test_train_refuses_before_it_loads_and_the_doctor_says_it(beside_a_card, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="build for CPUs"):
        train.main(["microcosm", "--run-dir", str(tmp_path / "r")])
    assert not (tmp_path / "r").exists()
    gpu = next(check for check in checks.machine_checks(tmp_path, "fp32") if check.name == "GPU")
    assert (gpu.status, "build for CPUs" in gpu.mend) == (FAIL, True)


@pytest.mark.parametrize(("capability", "refused"), [((7, 0), True), ((6, 1), True), ((7, 5), False), ((12, 0), False)])
def test_a_card_without_kernels_is_refused_by_name(capability, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100-SXM2-16GB")
    arches = ["sm_75", "sm_80", "sm_90a", "sm_100", "compute_120"]
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: arches)
    if not refused:
        return cuda.require_usable_gpu()
    with pytest.raises(BadInput, match=r"Tesla V100-SXM2-16GB has compute capability . ?.*kernels from 7\.5 on"):
        cuda.require_usable_gpu()
    return None


def test_a_machine_without_a_compiler_or_headers_is_told_before_the_models_load(monkeypatch, tmp_path):
    assert cuda.why_no_kernel_compiles() is None
    monkeypatch.setattr(cuda.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert "Python's headers are missing" in (cuda.why_no_kernel_compiles() or "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match=r"no C compiler: apt-get install gcc .* Triton kernel"):
        cuda.require_compiler()
    monkeypatch.setenv("CC", "nonesuch")
    assert "nonesuch does not run" in (cuda.why_no_kernel_compiles() or "")
    assert checks.compiler_check().status == NOT_APPLICABLE
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert checks.compiler_check().status == FAIL


def test_train_compiles_before_it_loads_on_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(train.cuda, "require_usable_gpu", lambda: None)
    monkeypatch.setattr(train, "place", lambda recipe: Place(torch.device("cuda")))
    monkeypatch.setattr(cuda, "why_no_kernel_compiles", lambda: "there is no C compiler")
    with pytest.raises(BadInput, match="no C compiler"):
        train.main(["microcosm", "--run-dir", str(tmp_path / "r")])


def test_a_rank_loads_on_its_own_gpu(monkeypatch):
    """torchrun: until Accelerate has joined the process group, every rank's current GPU is the first."""
    import accelerate

    current = [0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(accelerate, "PartialState", lambda: current.__setitem__(0, int(os.environ["LOCAL_RANK"])))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert device.this_device() == torch.device("cuda", 1)


NAMES = ("TORCH_CUDNN_SDPA_DEPRIORITIZED", "PYTORCH_ALLOC_CONF")


def settled(monkeypatch, **environment):
    for name in (*NAMES, "PYTORCH_CUDA_ALLOC_CONF", "UNSLOTH_VLLM_STANDBY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cli.os, "uname", lambda: SimpleNamespace(release="6.1.0-generic"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    cli.settle_cuda()
    return [os.environ.get(name) for name in NAMES]


def test_cudnns_attention_comes_last_unless_the_user_says_otherwise(monkeypatch):
    assert settled(monkeypatch)[0] == "1"
    assert settled(monkeypatch, TORCH_CUDNN_SDPA_DEPRIORITIZED="0")[0] == "0"


def test_segments_grow_but_with_standby_or_by_the_users_word(monkeypatch):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    assert settled(monkeypatch)[1] == "expandable_segments:True"
    assert settled(monkeypatch, UNSLOTH_VLLM_STANDBY="1")[1] is None
    assert settled(monkeypatch, PYTORCH_CUDA_ALLOC_CONF="max_split_size_mb:128")[1] is None
    assert settled(monkeypatch, PYTORCH_ALLOC_CONF="expandable_segments:False")[1] == "expandable_segments:False"
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: object())  # Unsloth and vLLM: it may sleep
    assert settled(monkeypatch)[1] is None


def test_both_are_set_before_torch_is_imported():
    watch = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch':\n"
        f"            print([os.environ.get(n) for n in {NAMES}], flush=True); os._exit(0)\n"
        "sys.meta_path.insert(0, Watch())\n"
        "from grlo_lite import train\n"
        "train.main(['microcosm'])\n"
    )
    clean = {name: value for name, value in os.environ.items() if name not in (*NAMES, "PYTORCH_CUDA_ALLOC_CONF")}
    done = subprocess.run([sys.executable, "-c", watch], capture_output=True, text=True, env=clean, check=True)
    assert "'1', 'expandable_segments:True'" in done.stdout


@pytest.mark.parametrize(
    ("message", "memory"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA out of memory. Tried to allocate 2 GiB", True),
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_what_counts_as_out_of_memory(message, memory):
    assert device.is_out_of_memory(RuntimeError(message)) is memory
    assert device.is_out_of_memory(ValueError(message)) is False


def test_the_doctors_compiler_check_passes_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert checks.compiler_check().status == PASS


def test_a_rollout_for_which_cublas_finds_no_room_is_made_in_parts(tmp_path):
    def generate(input_ids, **_):
        if len(input_ids) > 2:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return input_ids

    model = SimpleNamespace(generate=generate)
    halvings = Halvings(layout.create(tmp_path / "r", "microcosm", ""))
    in_parts = engines.in_parts(model.generate, 0, halvings)
    assert in_parts(input_ids=torch.arange(8)[:, None]).tolist() == [[n] for n in range(8)]
    assert halvings.smallest("rollout") == 2
