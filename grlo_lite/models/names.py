"""Where models are: `microcosm`, a directory or a Hub id to a path. The only place that knows the shipped ones."""

import os.path
import re
from collections.abc import Callable
from pathlib import Path

from grlo_lite.errors import BadInput
from grlo_lite.recipe.schema import Recipe
from grlo_lite.wording import shortened

ASSETS = Path(__file__).parents[1] / "microcosm" / "assets"


POLICY = ASSETS / "policy"


ENDLESS = ASSETS / "endless"  # the same base, which hardly ever ends a turn


REWARD = ASSETS / "reward"


HELDOUT = ASSETS / "heldout"  # a judge that nothing is ever trained on


DEMO = ASSETS / "demo"  # a finished run of the shipped recipe, without its checkpoints


LONGEST_HUB_ID = 96
IN_CACHE = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/")  # of the Hub's client


POLICIES = {"microcosm": POLICY, "microcosm-endless": ENDLESS}


JUDGES = {"microcosm": REWARD, "microcosm-heldout": HELDOUT}


def path_of_base(name: str) -> str:
    """Where a base model is loaded from, by the name that people use: a path, or the Hub id that the name is."""
    return str(POLICIES.get(name, name))


def path_of_judge(name: str) -> str:
    """Where a reward model is loaded from, by the name that people use: a path, or the Hub id that the name is."""
    return str(JUDGES.get(name, name))


def name_of(path: str) -> str:
    """What people call the model at a path: `microcosm`, `microcosm-heldout` and the like for the shipped ones."""
    shipped = {str(folder): name for table in (POLICIES, JUDGES) for name, folder in table.items()}
    return shipped.get(path, path)


def policy_path(recipe: Recipe) -> str:
    return base_path(recipe.model.name)


def base_path(name: str) -> str:
    """A base model's path or Hub id. Raises BadInput where a path leads nowhere."""
    return _required("model.name", name, path_of_base)


def model_paths(recipe: Recipe) -> list[str]:
    """Every model of the recipe as a path or a Hub id. Raises BadInput where a path leads nowhere."""
    heldout = recipe.reward.heldout.name
    unseen = [judge_path(heldout, "reward.heldout.name")] if heldout else []
    return [policy_path(recipe), *(judge_path(judge.name) for judge in recipe.reward.judges), *unseen]


def judge_path(name: str, key: str = "reward.name") -> str:
    """A reward model of the recipe, named under `key`, as a path or a Hub id. Raises BadInput where a path leads
    nowhere.
    """
    return _required(key, name, path_of_judge)


def _required(key: str, name: str, path_of: Callable[[str], str]) -> str:
    path = path_of(name)
    if not is_here(path) and not looks_like_a_hub_id(path):
        raise BadInput(
            f"{key}={shortened(name)}: there is no such directory; give one, a Hub id such as Qwen/Qwen3-4B-Base, or "
            "microcosm"
        )
    gguf = sorted(file.name for file in Path(path).glob("*.gguf")) if is_here(path) else []
    if gguf and not list(Path(path).glob("*.safetensors")):
        raise BadInput(
            f"{key}={shortened(name)} holds {gguf[0]} and no safetensors; load it in Transformers with gguf_file= "
            "(`pip install gguf`) and save model and tokenizer as a folder by save_pretrained"
        )
    return path


def is_here(name: str) -> bool:
    """Whether a model's name is a path that exists. Unlike `Path.exists`, False for a name of thousands of letters."""
    return os.path.exists(name)


def looks_like_a_hub_id(name: str) -> bool:
    """Whether a name could be a model of the Hub: `owner/name`, no longer than the Hub allows."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and len(name) <= LONGEST_HUB_ID


def hub_id_of(path: str) -> str | None:
    """A model's id on the Hub: the name that it is loaded by, or the one in whose cache it lies; None for a folder."""
    if looks_like_a_hub_id(path) and not is_here(path):
        return path
    cached = IN_CACHE.search(f"{os.path.abspath(path)}/")
    return f"{cached[1]}/{cached[2]}" if cached else None
