"""Exit codes, and the console script `grlo-lite COMMAND`, where each command is a module's `main`."""

import importlib
import logging
import os
import sys
from collections.abc import Callable

from grlo_lite.errors import BadInput, DiskFull, DoesNotFit

FAILED = 1
BAD_INPUT = 2
DOES_NOT_FIT = 3
INTERRUPTED = 130
COMMANDS = ("train", "plan", "evaluate", "doctor", "app")


def run_command(main: Callable[[], int]) -> int:
    """Runs a command; what the user has to change ends as one line on stderr and an exit code of its own, never as a
    traceback.
    """
    wait_passively()
    try:
        return main()
    except BadInput as error:
        return _said(error, BAD_INPUT)
    except DoesNotFit as error:
        return _said(error, DOES_NOT_FIT)
    except DiskFull as error:
        return _said(error, FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED


def _said(error: Exception, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


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
        return BAD_INPUT
    command = sys.argv.pop(1)
    return run_command(importlib.import_module(f"grlo_lite.{command}").main)
