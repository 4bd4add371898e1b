"""Reward functions that the user wrote: `reward.python`, loaded from a file or a module that was named, never fetched.

They have TRL's signature, `(prompts, completions, **columns) -> list of float or None`, with one conversation and one
list of assistant messages a completion, and of each column of the prompts a list; None is where a function does not
apply. Beside the prompts' own columns there are `answer`, the bare right answer; `solution`, which is the answer where
the prompts have no such column; and, in training, TRL's `completion_ids` and `trainer_state`.
"""

import importlib
import importlib.util
import inspect
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from grlo_lite.errors import BadInput
from grlo_lite.models.chat_template import Messages, Prompt, beside
from grlo_lite.rewards.deadline import TookTooLong, deadline

KEY = "reward.python"
OURS = ("prompts", "completions")
TRLS = ("completion_ids", "trainer_state")  # there while training, and not where held-out prompts are scored
NO_COLUMNS = {*OURS, *TRLS, "prompt", "completion", "log_extra", "log_metric"}


class PythonSource:
    """One of the recipe's functions."""

    def __init__(self, name: str, seconds: float):
        """Loads it. Raises BadInput where file, module or function is not there, or has another signature."""
        self.name = name
        self.seconds = seconds
        self.function = loaded_function(name)
        self.wanted, self.required, self.takes_all = signature_of(name, self.function)

    def scores(self, conversations: list[Messages], **more: Any) -> np.ndarray:
        """The function's rewards, shape (B,), NaN where it gave None; all NaN where it asks for what only training has.
        Raises BadInput, naming file, line and prompt, where it raises, takes too long, or gives what is no reward.
        """
        given = columns_of(conversations) | more
        if not self.required <= {*OURS, *given} and self.required <= {*OURS, *given, *TRLS}:
            return np.full(len(conversations), np.nan)
        given |= {"prompts": [c[:-1] for c in conversations], "completions": [c[-1:] for c in conversations]}
        words = {key: value for key, value in given.items() if self.takes_all or key in self.wanted}
        said = called(self.name, self.function, words, given["prompts"], self.seconds)
        return checked_rewards(self.name, said, given["prompts"])

    def require_columns(self, rows: list[Prompt]) -> None:
        """Raises BadInput where the function asks for a column that a prompt does not have."""
        for row in rows:
            have = {*OURS, *TRLS, *beside(row)} | ({"solution"} if row.answer is not None else set())
            if lacking := sorted(self.required - have):
                raise BadInput(
                    f"{KEY}={self.name!r} asks for {lacking[0]!r}, which {row.where} does not have (found: "
                    f"{', '.join(beside(row)) or 'no columns'}); give the prompts that column, or let it be optional"
                )


def columns_of(conversations: list[Messages]) -> dict[str, list[Any]]:
    """The columns of the prompts as lists, None where one lacks a column."""
    rows = [beside(conversation) for conversation in conversations]
    names = dict.fromkeys(name for row in rows for name in row if name not in NO_COLUMNS)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return columns if "solution" in columns or "answer" not in columns else columns | {"solution": columns["answer"]}


def signature_of(name: str, function: Callable[..., Any]) -> tuple[set[str], set[str], bool]:
    """The names that a function takes, those that it must be given, and whether it takes any others as well.

    Raises BadInput where it takes no `completions`, has to be given something by its place, or is async.
    """
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    wanted = {one.name for one in named}
    called_as = "it is called as function(prompts=…, completions=…, **columns) and gives a list of one number each"
    if inspect.iscoroutinefunction(function):
        raise BadInput(f"{KEY}={name!r} is async; write it without; {called_as}")
    if placed := [one.name for one in parameters if one.kind is one.POSITIONAL_ONLY and one.default is one.empty]:
        raise BadInput(f"{KEY}={name!r} takes {placed[0]!r} by its place alone; {called_as}")
    if not takes_all and "completions" not in wanted:
        raise BadInput(f"{KEY}={name!r} takes no completions (it has: {', '.join(sorted(wanted))}); {called_as}")
    return wanted, {one.name for one in named if one.default is one.empty}, takes_all


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
    except SyntaxError as error:
        raise BadInput(f"{KEY}={name!r}: {where}, line {error.lineno} is no Python: {error.msg}") from None
    except (OSError, ImportError) as error:
        raise BadInput(
            f"{KEY}={name!r} cannot be loaded: {error}; name a file, or a module that is installed"
        ) from None
    except Exception as error:  # noqa: BLE001 - the user's own code runs here
        raise BadInput(f"{KEY}={name!r} cannot be loaded: {_told(error, where)}") from None
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


def _told(error: BaseException, file: str) -> str:
    """An error of the user's code with its place: the last line of `file` that led to it, else where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((f for f in reversed(frames) if f.filename == file), frames[-1])
    return f"{type(error).__name__}: {error} at {frame.filename}:{frame.lineno}"


def called(
    name: str, function: Callable[..., Any], words: dict[str, Any], prompts: list[Messages], seconds: float
) -> Any:
    """What a function gives. Raises BadInput where it raises or takes longer than `seconds`."""
    asked = prompts[0][-1]["content"][:80] if prompts else ""
    code = getattr(function, "__code__", None)
    file = code.co_filename if code else ""
    try:
        with deadline(seconds, file):
            return function(**words)
    except TookTooLong as blocked:
        raise BadInput(
            f"{KEY}={name!r} was still running after {seconds:g} s, at {blocked}, in the batch of the prompt "
            f"{asked!r}; mend it, or raise reward.python_seconds"
        ) from None
    except Exception as error:  # noqa: BLE001 - whatever the user's own code raises ends the run with its place named
        raise BadInput(f"{KEY}={name!r} raised {_told(error, file)}, in the batch of the prompt {asked!r}") from None


def checked_rewards(name: str, given: Any, prompts: list[Messages]) -> np.ndarray:
    """A function's rewards, shape (B,), NaN where it gave None. Raises BadInput where they are no rewards."""
    if not isinstance(given, (list, tuple, np.ndarray)) or len(given) != len(prompts):
        size = f"{len(given)} values" if hasattr(given, "__len__") else repr(given)[:80]
        raise BadInput(f"{KEY}={name!r} gave {size} for {len(prompts)} completions; give a list of one number each")
    for value, prompt in zip(given, prompts, strict=True):
        number = isinstance(value, (int, float, np.number)) and np.isfinite(value)
        if value is not None and not number:
            asked = prompt[-1]["content"][:80]
            raise BadInput(f"{KEY}={name!r} gave {value!r} for an answer to {asked!r}; give a finite number or None")
    return np.array([np.nan if value is None else float(value) for value in given])
