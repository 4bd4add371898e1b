"""A finished adapter: found from a run or a folder, loaded on its base, saved."""

import hashlib
import os.path
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.models import names
from grlo_lite.models.chat_template import load_tokenizer
from grlo_lite.models.policy import Policy, require_causal_lm, settled
from grlo_lite.recipe import loading as recipes
from grlo_lite.rundir import files
from grlo_lite.rundir.layout import RunDir
from grlo_lite.wording import cut, shortened


def load_trained(
    path: str, revision: str, quantization: str, adapter: Path, device: Any, cpu_dtype: str = "fp32"
) -> Policy:
    """The base model with a trained adapter on it, in eval mode; `model.disable_adapter()` is the base.

    The tokenizer and with it the chat template are those saved with the adapter, the base's where there are none.
    Raises BadInput where the base or the adapter cannot be loaded.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from grlo_lite.models.quantization import from_pretrained

    saved = (adapter / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(str(adapter), "main") if saved else load_tokenizer(path, revision)
    require_causal_lm(path, revision)
    base = from_pretrained(AutoModelForCausalLM, path, revision, quantization, device, cpu_dtype)
    try:
        model = PeftModel.from_pretrained(base, str(adapter), is_trainable=False).eval()
    except (OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300]
        raise BadInput(f"the adapter {adapter} does not fit on {path}: {said}; name its own base model") from None
    return settled(Policy(model, tokenizer, "transformers"))


def save_adapter(model: Any, tokenizer: Any, folder: Path, model_card: str) -> None:
    """Writes the adapter as PEFT safetensors with the tokenizer, the chat template, the stop tokens and a model card.

    The base model's own generation settings know no end of turn, so generation_config.json goes with the adapter.
    """
    from transformers import GenerationConfig

    model.save_pretrained(folder, selected_adapters=["default"], safe_serialization=True)
    tokenizer.save_pretrained(folder)
    stop_ids, pad_id = model.generation_config.eos_token_id, model.generation_config.pad_token_id
    GenerationConfig(eos_token_id=stop_ids, pad_token_id=pad_id).save_pretrained(folder)
    (folder / "README.md").write_text(model_card, encoding="utf-8")


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
    cpu_dtype: str = "fp32"


def find(path: Path, base: str | None) -> Subject:
    """A run directory, its adapter folder, or an adapter of any other origin.

    Raises BadInput where there is none, or where its base model is not said.
    """
    if not os.path.isdir(path):  # Path.is_dir() raises where a name is longer than the file system takes
        raise _no_subject(path)
    run = RunDir(path if (path / "recipe.yaml").is_file() else path.parent)
    if run.recipe.is_file() and path in (run.path, run.adapter):
        if not (run.adapter / "adapter_config.json").is_file():
            raise BadInput(f"the run {run.path} has no adapter yet; finish it with --run-dir {run.path} --resume")
        _require_weights(run.adapter)
        recipe = recipes.load(str(run.recipe), [])
        environment = files.read_json(run.environment)
        if "template_sha256" not in environment:
            raise BadInput(f"{run.environment} says no template_sha256; restore it from a copy of the run")
        model = recipe.model
        name = _required_base(run.recipe, base or model.name)
        trained_by, template = recipe.reward.name, environment["template_sha256"]
        return Subject(
            run, run.adapter, name, model.revision, model.quantization, trained_by, template, recipe.cpu_dtype
        )
    if not (path / "adapter_config.json").is_file():
        raise _no_subject(path)
    _require_weights(path)
    config = files.read_json(path / "adapter_config.json")
    name = _required_base(path / "adapter_config.json", base or config.get("base_model_name_or_path"))
    return Subject(RunDir(path), path, name, config.get("revision") or "main", "nf4", None, None)


def _no_subject(path: Path) -> BadInput:
    return BadInput(f"{cut(str(path))} is neither a run directory (recipe.yaml) nor an adapter (adapter_config.json)")


def _required_base(said_by: Path, name: str | None) -> str:
    """The base model as a path or a Hub id. Raises BadInput where it is neither here nor one that could be fetched."""
    name = names.path_of_base(name or "")
    if not name or ((name.startswith("/") or len(name) > names.LONGEST_HUB_ID) and not names.is_here(name)):
        raise BadInput(f"{said_by}: its base model {shortened(name)} is not here; name it by --base")
    return name


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

    from grlo_lite.machine import device

    transformers.utils.logging.disable_progress_bar()
    here, s = device.this_device(), subject
    policy = load_trained(s.base, s.revision, s.quantization, s.adapter, here, s.cpu_dtype)
    if subject.template_sha256 not in (None, template_sha256(policy.tokenizer)):
        raise BadInput(
            f"{subject.adapter}: the chat template is no longer the one that the run was trained with; "
            "another template measures another model, so restore the adapter's chat_template.jinja"
        )
    return policy


def template_sha256(tokenizer: Any) -> str:
    return hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()
