"""The README of an export: what it is, what it went on from, what was measured, and whether it is the policy."""

from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.exporting.job import Job, model_name
from grlo_lite.exporting.proof import Proof
from grlo_lite.models import names
from grlo_lite.models.trained_adapter import Subject
from grlo_lite.recipe import loading as recipes
from grlo_lite.rundir import files
from grlo_lite.wording import numbers

README = "README.md"
PROVEN = "export.json"
WHAT = {
    "adapter": ("a LoRA adapter", "peft"),
    "merged": ("a model in 16 bits, the adapter merged into its base", "transformers"),
    "gguf": ("a GGUF model for llama.cpp, the adapter merged into its base", "gguf"),
}
INTO = {
    "dequantized": (
        "The adapter was trained on a base in NF4, so it is added to those weights, dequantized, and not to the "
        "original ones: this is the model that was trained and measured. Quantizing it to NF4 again would round most "
        "of the adapter away."
    ),
    "original": (
        "The adapter was trained on a base in NF4 and is added to the original weights here: this is **not** the model "
        "that was trained and measured."
    ),
}


def base_id(subject: Subject, given: str | None) -> str | None:
    """The base model's id on the Hub: the given one, the name it was loaded by, or the one whose cache it lies in.

    None for a model that is on no Hub. Raises BadInput where the given one is none.
    """
    if given is not None:
        if not names.looks_like_a_hub_id(given):
            raise BadInput(f"--base-id={given} is no id of the Hub; write OWNER/NAME")
        return given
    return names.hub_id_of(subject.base)


def write(folder: Path, job: Job, kind: str) -> None:
    """Writes the card, with the proof that the folder's export.json holds, if there is one."""
    (folder / README).write_text(text(job, kind, known_proof(folder)), encoding="utf-8")


def known_proof(folder: Path) -> dict[str, Any] | None:
    path = folder / PROVEN
    return files.read_json(path) if path.is_file() else None


def prove(folder: Path, job: Job, kind: str, proof: Proof, more: dict[str, Any]) -> None:
    """Keeps the proof beside the export and in its card."""
    files.write_json(folder / PROVEN, proof.facts() | {"said": proof.said()} | more)
    write(folder, job, kind)


def text(job: Job, kind: str, proof: dict[str, Any] | None) -> str:
    """The card as Markdown with its metadata."""
    from huggingface_hub import ModelCardData

    subject, name = job.subject, model_name(job.subject)
    what, library = WHAT[kind]
    evaluation = evaluated(subject)
    base = base_id(subject, job.base_id)
    tags = ["grlo", "grlo_lite", "trl", *(["lora"] if kind == "adapter" else [])]
    relation = {"adapter": "adapter", "merged": "finetune", "gguf": "quantized"}[kind]
    data = ModelCardData(
        base_model=base,
        base_model_relation=relation if base else None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=tags,
        model_name=name,
        eval_results=_results(evaluation, name) or None,
    )
    recipe = recipes.dumped(recipes.load(str(subject.run.recipe), [])) if subject.run.recipe.is_file() else None
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {name}\n",
        f"{what[0].upper()}{what[1:]}, trained with grlo_lite by reinforcement learning on chat prompts.",
        _base_said(base, subject),
        INTO[job.into] if kind != "adapter" and subject.quantization == "nf4" else "",
        _lineage(subject),
        f"## Is it the policy?\n\n{_proof_said(proof)}\n",
        f"## Base against tuned\n\n{_table(evaluation)}",
        f"## Recipe\n\n```yaml\n{recipe}```\n" if recipe else "",
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"


def evaluated(subject: Subject) -> dict[str, Any] | None:
    """The run's evaluation with at least one task; None where there is none."""
    if not subject.run.evaluation.is_file():
        return None
    found = files.read_json(subject.run.evaluation)
    return found if found.get("tasks") else None


def _results(evaluation: dict[str, Any] | None, name: str) -> list[Any]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            task_name=row["domain"],
            dataset_type=row["task"],
            dataset_name=row["task"],
            metric_type=row["metric"],
            metric_name=f"{row['metric']} (base {row['base']:.4f}, n {row['n']})",
            metric_value=row["tuned"],
        )
        for row in (evaluation or {}).get("tasks", [])
    ]


def _base_said(base: str | None, subject: Subject) -> str:
    if base:
        return f"Base model: [{base}](https://huggingface.co/{base})."
    return (
        f"Base model: `{Path(names.name_of(subject.base)).name}`, which is on no Hub that the run knows of; it must be "
        "had to load an adapter."
    )


def _lineage(subject: Subject) -> str:
    if not subject.stages:
        return ""
    said = ", then ".join(
        f"{stage.arm.replace('_', ' ')} (SHA-256 `{stage.adapter_sha256}`)" for stage in subject.stages
    )
    return f"It was trained in stages and went on from {said}."


def _proof_said(proof: dict[str, Any] | None) -> str:
    if proof is None:
        return "**Unproven**: nobody has held this export against the policy that was trained."
    lines = [f"Checked on the policy's own samples: {proof['said']}."]
    if "evaluation" in proof:
        gain = proof["evaluation"]
        lines.append(
            f"On {gain['n']} questions of {gain['suite']} its accuracy less the policy's is {gain['difference']:+.3f} "
            f"[{gain['ci_low']:+.3f}, {gain['ci_high']:+.3f}]."
        )
    return " ".join(lines)


def _table(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:
        return "**Not evaluated**: the run has no measurement of base against tuned.\n"
    rows = [(f"{t['task']} ({t['metric'].replace('_', ' ')})", str(t["n"]), *numbers(t)) for t in evaluation["tasks"]]
    if "average" in evaluation:
        rows.append(("average accuracy", "", *numbers(evaluation["average"])))
    head = "| | n | base | tuned | difference | 95 % interval |\n| --- | --- | --- | --- | --- | --- |\n"
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)
