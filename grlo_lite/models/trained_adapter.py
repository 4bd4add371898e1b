"""A finished adapter: found from a run or a folder, loaded on its base, saved."""

import hashlib
import os.path
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.models import names
from grlo_lite.models.chat_template import fetched, load_tokenizer
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

    tokenizer = tokenizer_of(path, revision, adapter)
    require_causal_lm(path, revision)
    base = from_pretrained(AutoModelForCausalLM, path, revision, quantization, device, cpu_dtype)
    try:
        model = PeftModel.from_pretrained(base, str(adapter), is_trainable=False).eval()
    except (OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300]
        raise BadInput(f"the adapter {adapter} does not fit on {path}: {said}; name its own base model") from None
    return settled(Policy(model, tokenizer, "transformers"))


def tokenizer_of(path: str, revision: str, adapter: Path) -> Any:
    """The tokenizer saved with an adapter, the base's where there is none."""
    saved = (adapter / "tokenizer_config.json").is_file()
    return load_tokenizer(str(adapter), "main") if saved else load_tokenizer(path, revision)


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
class Stage:
    """A further adapter of the same base as an arm of an evaluation: one that a later one went on from, or another."""

    arm: str  # stage_1, stage_2, …; tuned_2, tuned_3, …
    adapter: Path
    adapter_sha256: str


@dataclass(frozen=True)
class Subject:
    """An adapter, the base model it belongs on, and the directory that results about it go to."""

    run: RunDir
    adapter: Path
    base: str
    revision: str
    quantization: str
    trained_by: str | None  # the reward model, or what else earned the reward, where a recipe says
    template_sha256: str | None
    cpu_dtype: str = "fp32"
    stages: tuple[Stage, ...] = ()  # that it went on from, the first one first
    others: tuple[Stage, ...] = ()  # that are evaluated beside it, in the order in which they were named


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
        trained_by, template = recipe.reward.name or recipe.reward.said, environment["template_sha256"]
        return Subject(
            run, run.adapter, name, model.revision, model.quantization, trained_by, template, recipe.cpu_dtype,
            stages_of(environment.get("lineage", [])),
        )  # fmt: skip
    if not (path / "adapter_config.json").is_file():
        raise _no_subject(path)
    _require_weights(path)
    config = files.read_json(path / "adapter_config.json")
    name = _required_base(path / "adapter_config.json", base or config.get("base_model_name_or_path"))
    return Subject(RunDir(path), path, name, config.get("revision") or "main", "nf4", None, None)


def stages_of(lineage: list[dict[str, Any]]) -> tuple[Stage, ...]:
    """The stages that a lineage tells of, the first one first."""
    rows = enumerate(lineage, 1)
    return tuple(Stage(f"stage_{n}", Path(row["adapter"]), row["adapter_sha256"]) for n, row in rows)


def stages_here(subject: Subject) -> tuple[Subject, list[str]]:
    """The subject with those of its stages whose adapters are still as they were, and what is said of the others."""
    said = {}
    for stage in subject.stages:
        file = stage.adapter / "adapter_model.safetensors"
        if not file.is_file():
            said[stage] = f"{stage.arm}: its adapter {stage.adapter} is not here any more"
        elif files.file_sha256(file) != stage.adapter_sha256:
            said[stage] = f"{stage.arm}: the adapter {stage.adapter} is no longer the one that was gone on from"
    return replace(subject, stages=tuple(s for s in subject.stages if s not in said)), list(said.values())


def with_others(subject: Subject, others: list[Subject]) -> Subject:
    """The subject with further adapters beside it. Raises BadInput where one is not of the same base and template."""
    found = []
    for number, other in enumerate(others, 2):
        for what, own, theirs in (
            ("base model", names.name_of(subject.base), names.name_of(other.base)),
            ("revision", subject.revision, other.revision),
            ("quantization", subject.quantization, other.quantization),
            ("chat template", _template_of(subject), _template_of(other)),
        ):
            if own != theirs:
                raise BadInput(
                    f"{other.adapter}: its {what} is not that of {subject.adapter} ({shortened(theirs)}, "
                    f"{shortened(own)}); adapters of one base can be evaluated together, others one by one"
                )
        weights = files.file_sha256(other.adapter / "adapter_model.safetensors")
        found.append(Stage(f"tuned_{number}", other.adapter, weights))
    return replace(subject, others=tuple(found))


def _template_of(subject: Subject) -> str:
    """The chat template's file that lies with an adapter; empty where there is none, and the base's is taken."""
    file = subject.adapter / "chat_template.jinja"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


@contextmanager
def stages_loaded(model: Any, stages: tuple[Stage, ...]) -> Iterator[None]:
    """Inside, the stages' adapters lie beside the model's own under the names of their arms, none of them in effect."""
    for stage in stages:
        model.load_adapter(str(stage.adapter), stage.arm, is_trainable=False)
    model.set_adapter("default")
    try:
        yield
    finally:
        for stage in stages:
            model.delete_adapter(stage.arm)
        model.set_adapter("default")


@contextmanager
def in_effect(model: Any, arm: str) -> Iterator[None]:
    """Inside, the model answers as an arm: `tuned` with its own adapter, a further adapter's with that, others with
    none.
    """
    if arm == "tuned":
        yield
    elif arm in model.peft_config:
        model.set_adapter(arm)
        try:
            yield
        finally:
            model.set_adapter("default")
    else:
        with model.disable_adapter():
            yield


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


def longest_text(subject: Subject) -> int:
    """Tokens that the subject's base can read, by its configuration."""
    from transformers import AutoConfig

    config = fetched(AutoConfig, subject.base, subject.revision, f"the base {subject.base} cannot be loaded")
    return getattr(config, "max_position_embeddings", None) or 2048


def template_sha256(tokenizer: Any) -> str:
    return hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()
