"""Where models are: `microcosm`, a directory or a Hub id to a path. The only place that knows the shipped ones."""

from pathlib import Path

from grlo_lite.errors import BadInput
from grlo_lite.recipe.schema import Recipe

ASSETS = Path(__file__).parents[1] / "microcosm" / "assets"


POLICY = ASSETS / "policy"


REWARD = ASSETS / "reward"


HELDOUT = ASSETS / "heldout"  # a judge that nothing is ever trained on


DEMO = ASSETS / "demo"  # a finished run of the shipped recipe, without its checkpoints


def policy_path(recipe: Recipe) -> str:
    return _model_path("model.name", recipe.model.name, POLICY)


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
    if not Path(name).exists() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise BadInput(
            f"{key}={name!r}: there is no such directory; give one, a Hub id such as Qwen/Qwen3-4B-Base, or microcosm"
        )
    gguf = sorted(file.name for file in Path(name).glob("*.gguf"))
    if gguf and not list(Path(name).glob("*.safetensors")):
        raise BadInput(
            f"{key}={name!r} holds {gguf[0]} and no safetensors; load it in Transformers with gguf_file= (`pip install "
            "gguf`) and save model and tokenizer as a folder by save_pretrained"
        )
    return name
