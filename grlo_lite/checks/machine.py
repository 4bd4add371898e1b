"""What the doctor looks at in the machine: GPU, disk, versions."""

import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from grlo_lite.checks.check import FAIL, NOT_APPLICABLE, PASS, Check


def machine_checks(folder: Path, cpu_dtype: str) -> list[Check]:
    """GPU, driver, bf16, disk, and versions that do not fit together, for a recipe's `cpu_dtype`."""
    import torch

    from grlo_lite.machine import cuda, device, versions

    unusable = cuda.why_unusable()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        size = f"{properties.total_memory / 2**30:.1f} GiB"
        found = f"{properties.name}, {size}, CUDA {torch.version.cuda}, driver {versions.driver()}"
        gpu = Check("GPU", FAIL if unusable else PASS, found, unusable or "")
        mend = "fp16 is used instead; choose a recipe for a card before Ampere, such as a T4's"
        bf16 = torch.cuda.get_device_capability(0) >= (8, 0)
        native = Check(
            "bf16", PASS if bf16 else NOT_APPLICABLE, "native" if bf16 else "not native", "" if bf16 else mend
        )
    else:
        gpu = Check("GPU", NOT_APPLICABLE, "none: the microcosm runs on the CPU, larger models want a GPU")
        if unusable:
            gpu = Check("GPU", FAIL, "there is one that PyTorch cannot use", unusable)
        dtype = "bf16" if device.computes_in_bf16(cpu_dtype) else "fp32"
        native = Check("bf16", NOT_APPLICABLE, f"{dtype} on this CPU by cpu_dtype={cpu_dtype}")
    free = shutil.disk_usage(folder).free / 2**30
    disk = Check(
        "disk", PASS if free >= 5 else FAIL, f"{free:.0f} GiB free here", "" if free >= 5 else "free 5 GiB or more"
    )
    return [gpu, native, compiler_check(), disk, versions_check(requires("grlo-lite") or [], version)]


def compiler_check() -> Check:
    """Whether Triton could compile a kernel's launcher, as it has to on a GPU: TRL's loss is one of its kernels."""
    import torch

    from grlo_lite.machine import cuda

    if not torch.cuda.is_available():
        return Check("C compiler", NOT_APPLICABLE, "Triton's kernels are compiled on a GPU alone")
    reason = cuda.why_no_kernel_compiles()
    return Check("C compiler", FAIL if reason else PASS, "none that will do" if reason else "compiles", reason or "")


def versions_check(requirements: list[str], installed: Callable[[str], str]) -> Check:
    """Whether what is installed is within the ranges that were run."""
    from packaging.requirements import Requirement

    wrong = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = installed(requirement.name)
        except PackageNotFoundError:
            found = "missing"
        if found == "missing" or not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} is {found}, wanted {requirement.specifier}")
    return Check(
        "versions", FAIL if wrong else PASS, "; ".join(wrong) or "within range", "pip install -e ." if wrong else ""
    )
