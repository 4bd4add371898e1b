"""Reward functions that the user wrote: `reward.python`, loaded from a file or a module that was named, never fetched.

They have TRL's signature, `(prompts, completions, **more) -> list of float or None`, with one conversation and one list
of assistant messages a completion; None is where a function does not apply, and counts nothing.
"""

import importlib
import importlib.util
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from grlo_lite.errors import BadInput
from grlo_lite.recipe.schema import PythonReward

KEY = "reward.python"


class PythonRewards:
    """The recipe's functions by their names, with their weights."""

    def __init__(self, wanted: tuple[PythonReward, ...]):
        """Loads them. Raises BadInput where a file, a module or a function is not there."""
        self.weights = {one.function: one.weight for one in wanted}
        self.functions = {one.function: loaded_function(one.function) for one in wanted}

    def scores(self, conversations: list[list[dict[str, str]]], **more: Any) -> dict[str, np.ndarray]:
        """Each function's rewards, shape (B,), 0 where it gave None. Raises BadInput, naming file, line and prompt."""
        prompts, completions = [c[:-1] for c in conversations], [c[-1:] for c in conversations]
        return {
            name: checked_rewards(name, function, prompts, completions, more)
            for name, function in self.functions.items()
        }


@cache
def loaded_function(name: str) -> Callable[..., Any]:
    """The function of `FILE.py:FUNCTION` or `package.module:FUNCTION`, whose module is run once. Raises BadInput where
    there is none.
    """
    where, colon, function = name.rpartition(":")
    if not colon or not function.isidentifier():
        raise BadInput(f"{KEY}={name!r} names no function; write FILE.py:FUNCTION or package.module:FUNCTION")
    try:
        module = _module_of_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except (OSError, ImportError) as error:
        raise BadInput(
            f"{KEY}={name!r} cannot be loaded: {error}; name a file, or a module that is installed"
        ) from None
    except SyntaxError as error:
        raise BadInput(f"{KEY}={name!r}: {where}, line {error.lineno} is no Python: {error.msg}") from None
    found = getattr(module, function, None)
    if not callable(found):
        there = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise BadInput(f"{KEY}={name!r}: {where} has no function {function}; it has {', '.join(there) or 'none'}")
    return found


def _module_of_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"reward_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checked_rewards(
    name: str, function: Callable[..., Any], prompts: list[Any], completions: list[Any], more: dict[str, Any]
) -> np.ndarray:
    """What a function gives for a batch, shape (B,). Raises BadInput where it raises, or gives what is no reward."""
    asked = prompts[0][-1]["content"][:80] if prompts else ""
    try:
        given = function(prompts=prompts, completions=completions, **more)
    except Exception as error:  # noqa: BLE001 - whatever the user's own code raises ends the run with its place named
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error}"
        raise BadInput(
            f"{KEY}={name!r} raised {said} at {frame.filename}:{frame.lineno}, in the batch of the prompt {asked!r}; "
            "it is called as function(prompts=…, completions=…, **more)"
        ) from None
    if not isinstance(given, (list, tuple, np.ndarray)) or len(given) != len(completions):
        size = f"{len(given)} values" if hasattr(given, "__len__") else repr(given)[:80]
        raise BadInput(f"{KEY}={name!r} gave {size} for {len(completions)} completions; give a list of one number each")
    for i, value in enumerate(given):
        number = isinstance(value, (int, float, np.number)) and np.isfinite(value)
        if value is not None and not number:
            prompt = prompts[i][-1]["content"][:80]
            raise BadInput(f"{KEY}={name!r} gave {value!r} for an answer to {prompt!r}; give a finite number or None")
    return np.array([0.0 if value is None else float(value) for value in given])
