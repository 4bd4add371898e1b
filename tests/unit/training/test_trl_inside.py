"""Every private name of TRL's and Transformers' that is touched is one that the installed ones have."""

import inspect
from pathlib import Path

import pytest
import transformers
import trl

from grlo_lite.training import trl_inside


def source_of(name):
    """A class's source with that of what it inherits from; TRL's trainers set their attributes in their methods."""
    kind = getattr(trl, name)
    return "".join(
        inspect.getsource(base) for base in kind.__mro__ if base.__module__.startswith(("trl", "transformers"))
    )


@pytest.mark.parametrize("algorithm", ["GRPO", "RLOO"])
@pytest.mark.parametrize(("kind", "name", "why"), trl_inside.TOUCHED)
def test_the_installed_trl_has_it(algorithm, kind, name, why):
    owner = f"{algorithm}{kind}"
    assert hasattr(getattr(trl, owner), name) or f"self.{name}" in source_of(owner), (trl.__version__, why)


def test_no_other_file_touches_what_is_private():
    """Of TRL's trainer and configuration: the names of the table stand in that one file alone."""
    names = {name for _, name, _ in trl_inside.TOUCHED}
    package = inspect.getfile(trl_inside).rpartition("/grlo_lite/")[0]
    for file in Path(package, "grlo_lite").rglob("*.py"):
        if file.name != "trl_inside.py":
            text = file.read_text(encoding="utf-8")
            assert not [name for name in names if f".{name}" in text or f'"{name}"' in text], file


def test_transformers_is_one_that_was_read():
    assert transformers.__version__.split(".")[0] == "5"
