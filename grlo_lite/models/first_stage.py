"""The adapter that training goes on from (`model.adapter`): found, held against the recipe, put onto the policy."""

import os.path
from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.models import names, trained_adapter
from grlo_lite.models.trained_adapter import Subject
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe.schema import Recipe
from grlo_lite.rundir import files
from grlo_lite.wording import shortened

SHIPPED = {"microcosm": names.DEMO}  # a finished run by the name of its recipe


def found(recipe: Recipe) -> Subject | None:
    """The first stage of a recipe, None where it begins with a fresh adapter. Raises BadInput where it is not here, is
    unfinished, or is of another base, precision or shape.
    """
    if recipe.model.adapter is None:
        return None
    named = f"model.adapter={shortened(recipe.model.adapter)}"
    path = SHIPPED.get(recipe.model.adapter, Path(os.path.expanduser(recipe.model.adapter)))
    if not os.path.isdir(path):
        raise BadInput(f"{named}: there is no such run; train its first stage, or name a run by --from RUN")
    try:
        subject = trained_adapter.find(path, None)
    except BadInput as error:
        raise BadInput(f"{named}: {error}") from None
    _require_match(named, recipe, subject)
    return subject


def required(recipe: Recipe) -> Recipe:
    """The recipe with its first stage, which is told, as an absolute path, by which a resumed run finds it from any
    folder. Raises BadInput where it cannot be gone on from.
    """
    first, named = found(recipe), recipe.model.adapter
    if first is None or named is None:
        return recipe
    print(f"going on from the adapter {first.adapter}", flush=True)
    if named in SHIPPED:
        return recipe
    absolute = os.path.abspath(os.path.expanduser(named))
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"adapter": absolute})})


def _require_match(named: str, recipe: Recipe, subject: Subject) -> None:
    """Raises BadInput where the adapter was not trained on what the recipe trains it on, with what to set."""
    config = files.read_json(subject.adapter / "adapter_config.json")
    model, base = recipe.model, names.path_of_base(recipe.model.name)
    differ = [("model.name", os.path.realpath(base) == os.path.realpath(subject.base), names.name_of(subject.base))]
    differ += [(f"lora.{key}", getattr(recipe.lora, key) == config.get(k), config.get(k)) for key, k in _LORA.items()]
    if subject.run.recipe.is_file():  # a bare adapter does not say these
        first = recipes.load(str(subject.run.recipe), [])
        differ += [
            (f"model.{key}", getattr(model, key) == getattr(first.model, key), getattr(first.model, key))
            for key in ("revision", "quantization", "eos_token")
        ]
        differ += [("lora.train_stop_tokens", recipe.lora.train_stop_tokens == first.lora.train_stop_tokens, "…")]
        differ += [("cpu_dtype", recipe.cpu_dtype == first.cpu_dtype, first.cpu_dtype)]
    for key, same, its in differ:
        if not same:
            raise BadInput(f"{named} was trained with another {key}; set {key}={its}, or choose another adapter")


_LORA = {"rank": "r", "alpha": "lora_alpha"}  # the recipe's keys and PEFT's


def put_on(policy: Any, subject: Subject) -> None:
    """Gives the policy's fresh adapter the weights of the first stage's, whose files are only read.

    Raises BadInput where base commit or chat template are no longer those it was trained with, or its layers others.
    """
    from peft import set_peft_model_state_dict
    from peft.utils.save_and_load import get_peft_model_state_dict
    from safetensors.torch import load_file

    began_with = files.read_json(subject.run.environment) if subject.run.environment.is_file() else {}
    commits = began_with.get("model_commit"), getattr(policy.model.config, "_commit_hash", None)
    if None not in commits and commits[0] != commits[1]:
        raise BadInput(f"{subject.adapter} was trained on the base's commit {commits[0]}; set model.revision to it")
    if subject.template_sha256 not in (None, trained_adapter.template_sha256(policy.tokenizer)):
        raise BadInput(
            f"{subject.adapter} was trained with another chat template than {policy.model.config._name_or_path} has; "
            "another template trains another model, so restore the base's own"
        )
    weights = load_file(subject.adapter / "adapter_model.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(policy.model).items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if odd := sorted(name for name in shapes.keys() | theirs.keys() if shapes.get(name) != theirs.get(name)):
        raise BadInput(
            f"{subject.adapter} adapts other layers than lora.targets does, or other shapes (first {odd[0]}); set "
            "lora.targets to those of its adapter_config.json"
        )
    set_peft_model_state_dict(policy.model, weights)


def lineage(subject: Subject | None) -> list[dict[str, Any]]:
    """Where an adapter comes from, as environment.json and the model card tell it: a row a stage, the first one first;
    empty where it was fresh.
    """
    if subject is None:
        return []
    run = subject.run
    row: dict[str, Any] = {
        "adapter": str(subject.adapter),
        "adapter_sha256": files.file_sha256(subject.adapter / "adapter_model.safetensors"),
    }
    if not run.recipe.is_file():
        return [row]
    recipe, began_with = recipes.load(str(run.recipe), []), files.read_json(run.environment)
    row |= {"recipe": began_with.get("recipe"), "reward": recipe.reward.said}
    row |= {"prompts": [part.source for part in recipe.prompts.parts()]}
    if run.finished:
        summary = files.read_json(run.summary)
        row |= {key: summary[key] for key in ("steps", "rollouts") if key in summary}
    return [*began_with.get("lineage", []), row]
