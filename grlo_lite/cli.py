"""Exit codes, and the console script `grlo-lite COMMAND`, where each command is a module's `main`."""

import argparse
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable

from grlo_lite.errors import BadInput, DiskFull, DoesNotFit, EngineFailed
from grlo_lite.wording import shortened

INTERRUPTED = 130
COMMANDS = ("train", "plan", "evaluate", "report", "watch", "runs", "export", "doctor", "app")


def run_command(main: Callable[[], int]) -> int:
    """Runs a command; what the user has to change ends as one line on stderr and an exit code of its own, never as a
    traceback.
    """
    wait_passively()
    try:
        return main()
    except (BadInput, DoesNotFit, DiskFull, EngineFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


def command_line(command: str, description: str) -> argparse.ArgumentParser:
    """The parser of `python -m grlo_lite.COMMAND`, whose options are written out."""
    return argparse.ArgumentParser(prog=f"python -m grlo_lite.{command}", allow_abbrev=False, description=description)


def parsed_with_recipe(
    parser: argparse.ArgumentParser, argv: list[str] | None
) -> tuple[argparse.Namespace, str | None, list[str]]:
    """A command line's options, the recipe that it names, and its overrides of the recipe's keys.

    Among the words that belong to no option, those with an `=` are overrides and the other one is the recipe, in any
    order and between the options. Raises BadInput where there is a second one.
    """
    words = "a shipped recipe or a YAML file, and overrides of its keys"
    parser.add_argument("words", nargs="*", metavar="RECIPE | section.key=value", help=words)
    arguments = parser.parse_intermixed_args(argv)
    named = [word for word in arguments.words if "=" not in word]
    if len(named) > 1:
        raise BadInput(
            f"{shortened(named[1])} has no '=', so it is a second recipe beside {shortened(named[0])}; "
            "write an override as section.key=value"
        )
    return arguments, named[0] if named else None, [word for word in arguments.words if "=" in word]


def settle_cuda() -> None:
    """What PyTorch reads of the environment once, before it touches a GPU; what the user has set stays.

    From Hopper on it prefers cuDNN's attention, which plans anew for every shape, and every micro-batch here is of a
    shape of its own. Segments that grow keep the allocator from breaking memory up; Unsloth sets that only after CUDA
    has been initialized. vLLM's sleep does not go with them.
    """
    os.environ.setdefault("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
    standby = os.environ.get("UNSLOTH_VLLM_STANDBY") == "1" or importlib.util.find_spec("vllm") is not None
    on_windows = "microsoft" in os.uname().release.lower()  # WSL's driver has no such memory
    if not standby and not on_windows and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def wait_passively() -> None:
    """Lets the threads of a product sleep while they wait for each other, unless the user chose how they wait.

    To be set before torch is imported. They would spin: beside one busy core, two spinning threads took the default
    run from half a minute to nine.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def settle_libraries(offline: bool) -> None:
    """Keeps the libraries from chatting and reporting and, where `offline`, off the network; before they are
    imported.
    """
    settle_cuda()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("torchao").setLevel(logging.ERROR)


def grlo_lite() -> int:
    """The console script: `grlo-lite train …` is `python -m grlo_lite.train …`."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(f"usage: grlo-lite {{{','.join(COMMANDS)}}} …", file=sys.stderr)
        return BadInput.exit_code
    command = sys.argv.pop(1)
    return run_command(importlib.import_module(f"grlo_lite.{command}").main)
