"""Where models are: `microcosm`, a directory or a Hub id to a path. The only place that knows the shipped ones."""

import os.path
from pathlib import Path

from grlo_lite.errors import BadInput
from grlo_lite.recipe.schema import Recipe
from grlo_lite.wording import shortened

ASSETS = Path(__file__).parents[1] / "microcosm" / "assets"


POLICY = ASSETS / "policy"


REWARD = ASSETS / "reward"


HELDOUT = ASSETS / "heldout"  # a judge that nothing is ever trained on


DEMO = ASSETS / "demo"  # a finished run of the shipped recipe, without its checkpoints


LONGEST_HUB_ID = 96


def policy_path(recipe: Recipe) -> str:
    return base_path(recipe.model.name)


def base_path(name: str) -> str:
    """A base model's path or Hub id. Raises BadInput where a path leads nowhere."""
    return _model_path("model.name", name, POLICY)


def model_paths(recipe: Recipe) -> list[str]:
    """Every model of the recipe as a path or a Hub id. Raises BadInput where a path leads nowhere."""
    heldout = recipe.reward.heldout.name
    names = [judge.name for judge in recipe.reward.judges] + ([heldout] if heldout else [])
    return [policy_path(recipe), *map(judge_path, names)]


def judge_path(name: str) -> str:
    if name == "microcosm-heldout":
        return str(HELDOUT)
    return _model_path("reward.name", name, REWARD)


def _model_path(key: str, name: str, shipped: Path) -> str:
    """`microcosm` means the shipped model; a path must exist; all else is a model of the Hub."""
    if name == "microcosm":
        return str(shipped)
    if not is_here(name) and not looks_like_a_hub_id(name):
        raise BadInput(
            f"{key}={shortened(name)}: there is no such directory; give one, a Hub id such as Qwen/Qwen3-4B-Base, or "
            "microcosm"
        )
    return name


def is_here(name: str) -> bool:
    """Whether a model's name is a path that exists. Unlike `Path.exists`, False for a name of thousands of letters."""
    return os.path.exists(name)


def looks_like_a_hub_id(name: str) -> bool:
    """Whether a name could be a model of the Hub: `owner/name`, no longer than the Hub allows."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and len(name) <= LONGEST_HUB_ID
