"""What CUDA needs before it is any use: a driver, a build of PyTorch and kernels that know the card, a C compiler."""

import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from grlo_lite.errors import BadInput
from grlo_lite.machine.versions import command_output, driver

TWO_LINES = "#include <Python.h>\nlong answer(void) { return PyLong_AsLong(PyLong_FromLong(42)); }\n"


def require_usable_gpu() -> None:
    """Raises BadInput where there is a card that PyTorch cannot use, with the reason: what is meant for a GPU would
    train on the CPU without a word. Hiding the card by CUDA_VISIBLE_DEVICES= says that the CPU is meant.
    """
    if reason := why_unusable():
        raise BadInput(f"{reason}; to train on the CPU all the same, set CUDA_VISIBLE_DEVICES=")


def why_unusable() -> str | None:
    """Why the card that is here cannot be used, and what to do; None where it can, or where there is none."""
    import torch

    if torch.cuda.is_available():
        return _too_old_a_card()
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return None
    names = command_output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    if not names:
        return None
    card = names.splitlines()[0].strip()
    if torch.version.cuda is None:
        return (
            f"nvidia-smi sees {card}, but PyTorch {torch.__version__} is a build for CPUs; install one for CUDA: "
            "pip uninstall -y torch && pip install -c requirements-gpu.lock torch"
        )
    return (
        f"nvidia-smi sees {card}, but PyTorch {torch.__version__} cannot use it: driver {driver()} may be older than "
        f"CUDA {torch.version.cuda} asks for (13.0 wants 580 or newer); update the driver"
    )


def _too_old_a_card() -> str | None:
    import torch

    major, minor = torch.cuda.get_device_capability()
    numbers = [int(found[1]) for arch in torch.cuda.get_arch_list() if (found := re.search(r"_(\d+)", arch))]
    if not numbers or 10 * major + minor >= min(numbers):
        return None
    oldest = f"{min(numbers) // 10}.{min(numbers) % 10}"
    return (
        f"{torch.cuda.get_device_name()} has compute capability {major}.{minor}, and PyTorch {torch.__version__} has "
        f"kernels from {oldest} on (7.5 is Turing, a T4's); use a newer card"
    )


def require_compiler() -> None:
    """Raises BadInput where Triton could not compile its launchers: TRL's loss would fail after a whole rollout."""
    if reason := why_no_kernel_compiles():
        raise BadInput(f"{reason}; TRL's loss is a Triton kernel, which is compiled where it runs")


def why_no_kernel_compiles() -> str | None:
    """Why the two lines of C that Triton compiles for every kernel cannot be, and what to install; None where they can.

    The compiler is the one that Triton takes (`triton/runtime/build.py`): CC, else gcc, else clang.
    """
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        return "there is no C compiler: apt-get install gcc libc6-dev, or name one in CC"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "two_lines.c"
        source.write_text(TWO_LINES)
        headers = sysconfig.get_paths()["include"]
        words = [*compiler.split(), str(source), "-shared", "-fPIC", f"-I{headers}", "-o", f"{folder}/two_lines.so"]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            return f"the C compiler {compiler} does not run ({error}); name another one in CC"
    if done.returncode == 0:
        return None
    said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
    which = "Python's headers are missing: apt-get install python3-dev" if "Python.h" in said else "mend the compiler"
    return f"{compiler} cannot compile a kernel ({' '.join(said.split())[:160]}); {which}"
