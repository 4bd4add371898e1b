"""What is asked: an adapter with the base model it belongs on, found from a run directory or an adapter's folder."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grlo_lite import microcosm, rundir
from grlo_lite import recipe as recipes
from grlo_lite.errors import BadInput
from grlo_lite.rundir import RunDir


@dataclass(frozen=True)
class Subject:
    """An adapter, the base model it belongs on, and the directory that results about it go to."""

    run: RunDir
    adapter: Path
    base: str
    revision: str
    quantization: str
    trained_by: str | None  # the reward model, where a recipe says
    template_sha256: str | None


def find(path: Path, base: str | None) -> Subject:
    """A run directory, its adapter folder, or an adapter of any other origin.

    Raises BadInput where there is none, or where its base model is not said.
    """
    run = RunDir(path if (path / "recipe.yaml").is_file() else path.parent)
    if run.recipe.is_file() and path in (run.path, run.adapter):
        if not (run.adapter / "adapter_config.json").is_file():
            raise BadInput(f"the run {run.path} has no adapter yet; finish it with --run-dir {run.path} --resume")
        _require_weights(run.adapter)
        recipe = recipes.load(str(run.recipe), [])
        environment = rundir.read_json(run.environment)
        if "template_sha256" not in environment:
            raise BadInput(f"{run.environment} says no template_sha256; restore it from a copy of the run")
        model = recipe.model
        name = base or (str(microcosm.POLICY) if model.name == "microcosm" else model.name)
        trained_by, template = recipe.reward.name, environment["template_sha256"]
        return Subject(run, run.adapter, name, model.revision, model.quantization, trained_by, template)
    if not (path / "adapter_config.json").is_file():
        raise BadInput(f"{path} is neither a run directory (recipe.yaml) nor an adapter (adapter_config.json)")
    _require_weights(path)
    config = rundir.read_json(path / "adapter_config.json")
    name = base or config.get("base_model_name_or_path")
    if name == "microcosm":
        name = str(microcosm.POLICY)
    if not name or (name.startswith("/") and not Path(name).exists()):
        raise BadInput(f"{path}/adapter_config.json: its base model {name!r} is not here; name it by --base")
    return Subject(RunDir(path), path, name, config.get("revision") or "main", "nf4", None, None)


def _require_weights(adapter: Path) -> None:
    """Raises BadInput where the adapter's weights are missing or damaged."""
    from safetensors import SafetensorError, safe_open

    file = adapter / "adapter_model.safetensors"
    if not file.is_file():
        raise BadInput(f"{adapter} has no {file.name}; save the adapter as safetensors, or restore it")
    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{file} is damaged ({error}); restore it") from None


def load(subject: Subject) -> Any:
    """The loaded policy. Raises BadInput where its chat template is not the one the run was trained with."""
    import transformers

    from grlo_lite import hardware
    from grlo_lite import policy as policies

    transformers.utils.logging.disable_progress_bar()
    policy = policies.load_trained(
        subject.base, subject.revision, subject.quantization, subject.adapter, hardware.device()
    )
    if subject.template_sha256 not in (None, template_sha256(policy.tokenizer)):
        raise BadInput(
            f"{subject.adapter}: the chat template is no longer the one that the run was trained with; "
            "another template measures another model, so restore the adapter's chat_template.jinja"
        )
    return policy


def template_sha256(tokenizer: Any) -> str:
    return hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()
