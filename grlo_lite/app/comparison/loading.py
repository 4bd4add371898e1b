"""Several adapters on one base, loaded to answer side by side."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from grlo_lite.app.comparison.comparison import Comparison
from grlo_lite.app.comparison.values import Adapter
from grlo_lite.errors import BadInput
from grlo_lite.models import trained_adapter
from grlo_lite.models.trained_adapter import Subject
from grlo_lite.rundir import files


def load(subjects: list[Subject], load_judge: Callable[[], Any] | None = None, engine: str = "kit") -> Comparison:
    """One model with the adapters of all subjects on it, answering by an engine of engine_table.ANSWERING.

    Raises BadInput where they do not belong on the same base, in the same precision and template, or where an adapter
    is of a kind that cannot answer beside its base in one batch.
    """
    first = subjects[0]
    folders = [s.adapter.resolve() for s in subjects]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise BadInput(f"{twice} is named twice; name each adapter once")
    for other in subjects:
        _require_mixable(other.adapter)
        for what in ("base", "revision", "quantization", "cpu_dtype", "template_sha256"):
            # an adapter without its run says neither a template nor, mostly, a revision
            unsaid = other.trained_by is None and what in ("revision", "cpu_dtype", "template_sha256")
            if getattr(other, what) != getattr(first, what) and not unsaid:
                raise BadInput(
                    f"{other.adapter} has another {what} than {first.adapter} ({getattr(other, what)}, not "
                    f"{getattr(first, what)}); give adapters of one base model, or one run"
                )
    policy = trained_adapter.load(first)
    names = ["default", *(f"run{i}" for i in range(2, len(subjects) + 1))]
    for name, other in zip(names[1:], subjects[1:], strict=True):
        try:
            policy.model.load_adapter(str(other.adapter), name, is_trainable=False)
        except (OSError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())[:300]
            raise BadInput(f"the adapter {other.adapter} cannot be loaded beside {first.adapter}: {said}") from None
    adapters = [
        Adapter(label, name, files.file_sha256(s.adapter / "adapter_model.safetensors"))
        for label, name, s in zip(_labels([s.run.path for s in subjects]), names, subjects, strict=True)
    ]
    scored = [a.label for a, s in zip(adapters, subjects, strict=True) if s.trained_by == first.trained_by]
    return Comparison(policy, adapters, load_judge, scored, engine)


def _labels(paths: list[Path]) -> list[str]:
    """A run's directory name, or its whole path where two are called the same."""
    names = [path.resolve().name for path in paths]
    return [str(p) if names.count(n) > 1 else n for p, n in zip(paths, names, strict=True)]


def _require_mixable(adapter: Path) -> None:
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"{adapter}/adapter_config.json cannot be read: {' '.join(str(error).split())[:200]}") from None
    kind = getattr(config.peft_type, "value", config.peft_type)
    start = str(getattr(config, "init_lora_weights", True))
    hindrances = {
        f"it is {kind}": kind != "LORA",
        "it is DoRA": getattr(config, "use_dora", False),
        "it trained biases": getattr(config, "bias", "none") != "none",
        "it replaces whole modules": getattr(config, "modules_to_save", None),
        "it repeats layers": getattr(config, "layer_replication", None),
        "it adapts bare parameters": getattr(config, "target_parameters", None),
        # OLoRA and its like change the base's weights when they are loaded: the base arm would not be the base
        f"it starts from {start}": start not in ("True", "False", "gaussian", "eva"),
    }
    if why := next((said for said, found in hindrances.items() if found), None):
        raise BadInput(
            f"{adapter} cannot answer beside its base in one batch: {why}; the app takes plain LoRA adapters"
        )
