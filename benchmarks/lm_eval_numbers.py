"""The kit's numbers beside those of lm-eval's own command line: `python benchmarks/lm_eval_numbers.py ADAPTER DIR`.

A multiple-choice, a loglikelihood, a rolling and a generative task, a group and a YAML task, on made-up questions
(lm_eval_files.py). The kit asks both arms of the NF4 model with its adapter; `lm_eval` is given two folders in fp32,
the dequantized base and the same with the adapter added to it. ADAPTER is a run, an adapter, or a base model's folder,
on which an adapter is drawn at random. One row a forward pass on both sides, so that sums are rounded alike.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lm_eval_files

TASKS = ("arc_easy", "lambada_openai", "wikitext", "gsm8k", "wmdp_bio", "wmdp_chem", "wmdp_cyber")
MAX_TOKENS = 48


def drawn_adapter(base: Path, folder: Path) -> Path:
    """An adapter of rank 8 whose weights are random, so that its arm differs from the base's."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted: Any = get_peft_model(
        model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.004)
    adapted.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def write_models(subject: Any, folder: Path) -> None:
    """The two arms as folders in fp32: the dequantized base, and that with the adapter added to its weights."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    from grlo_lite.generation.linears import dense_weight
    from grlo_lite.generation.twin import linear_layers
    from grlo_lite.models import names, trained_adapter

    policy = trained_adapter.load(subject)
    adapted = dict(policy.model.get_base_model().named_modules())
    ends = policy.model.generation_config.eos_token_id
    for arm in ("base", "tuned"):
        merged: Any = AutoModelForCausalLM.from_pretrained(names.path_of_base(subject.base), dtype=torch.float32)
        with trained_adapter.in_effect(policy.model, arm):
            weights = {
                id(layer): dense_weight(layer, ["default"] if arm == "tuned" else [])
                for layer in linear_layers(policy.model.get_base_model())
            }
            for name, module in merged.named_modules():
                if id(adapted[name]) in weights:
                    module.weight.data.copy_(weights[id(adapted[name])])
        merged.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=policy.tokenizer.pad_token_id)
        merged.save_pretrained(folder / arm)
        policy.tokenizer.save_pretrained(folder / arm)


def write_yaml(data: Path, folder: Path) -> None:
    """The bundled tasks' YAML with their questions read from the files, for lm_eval's command line."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    index = TaskManager().task_index
    folder.mkdir(exist_ok=True)
    for name in TASKS:
        entry = index[name]
        asked = str((data / f"{name}.jsonl").resolve())
        examples = data / f"{name}.train.jsonl"
        files = {"test": asked, "validation": asked, "train": str(examples.resolve()) if examples.is_file() else asked}
        lines = [f"include: {entry.yaml_path}", f"task: {name}", "dataset_path: json", "dataset_name: null"]
        lines.append(f"dataset_kwargs: {json.dumps({'data_files': files | {'dev': asked}})}")
        (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    assert lm_eval is not None


def by_command_line(model: Path, include: Path, out: Path, templated: bool) -> dict[str, Any]:
    """What `lm_eval run` says: its results and its samples by task."""
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf"]
    command += ["--model_args", f"pretrained={model},dtype=float32,enable_thinking=False", "--device", "cpu"]
    command += ["--tasks", "arc_easy,lambada_openai,wikitext,gsm8k,wmdp,counting", "--include_path", str(include)]
    command += ["--batch_size", "1", "--seed", "0", "--log_samples", "--output_path", str(out)]
    command += ["--gen_kwargs", f"max_gen_toks={MAX_TOKENS}", *(["--apply_chat_template"] if templated else [])]
    subprocess.run(command, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=subprocess.DEVNULL)
    results = json.loads(next(out.rglob("results_*.json")).read_text())
    samples = {}
    for path in out.rglob("samples_*.jsonl"):
        name = path.name.removeprefix("samples_").rsplit("_", 1)[0]
        samples[name] = [json.loads(line) for line in path.read_text().splitlines()]
    return {"results": results["results"], "samples": samples}


def ours(subject: Path, data: Path, templated: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """evaluation.json and the answers of the kit's own command."""
    from grlo_lite import evaluate
    from grlo_lite.rundir.layout import RunDir

    words = [str(subject), "--tasks", "arc_easy,lambada_openai,wikitext,lm-eval:gsm8k,wmdp,counting"]
    words += ["--include-path", str(data / "own"), "--data-dir", str(data), "--max-tokens", str(MAX_TOKENS)]
    words += ["--tokens-per-batch", "1", *([] if templated else ["--no-chat-template"])]
    if evaluate.main(words):
        raise SystemExit("the kit's evaluation did not end in order")
    run = RunDir(subject)
    answers = [json.loads(line) for line in run.answers.read_text().splitlines()]
    return json.loads(run.evaluation.read_text()), answers


def compared(evaluation: dict[str, Any], answers: list[dict[str, Any]], theirs: dict[str, Any], arm: str) -> list[str]:
    """Lines: each task's metrics on both sides, and its documents' responses."""
    lines = []
    for row in evaluation["tasks"]:
        name = row["task"].removeprefix("lm-eval:")
        for metric in (row, *row["also"]):
            key = metric["metric"] if "," in metric["metric"] else f"{metric['metric']},none"
            other = theirs["results"][name][key]
            apart = abs(metric[arm] - other)
            lines.append(
                f"{arm:6} {name:15} {key:30} {metric[arm]:<22.12g} {other:<22.12g} {apart / max(1, abs(other)):.1e}"
            )
        said = [a for a in answers if a["task"] == row["task"] and a["arm"] == arm]
        filters = {s["filter"] for s in theirs["samples"][name]}
        rows = {s["doc_id"]: s for s in theirs["samples"][name] if s["filter"] == sorted(filters)[0]}
        lines.append(f"{arm:6} {name:15} {documents(said, rows)}")
    for group in evaluation.get("groups", []):
        name = group["group"].removeprefix("lm-eval:")
        other = theirs["results"][name][f"{group['metric']},none"]
        apart = abs(group[arm] - other)
        lines.append(f"{arm:6} {name:15} group, {group['metric']:23} {group[arm]:<22.12g} {other:<22.12g} {apart:.1e}")
    return lines


def documents(said: list[dict[str, Any]], theirs: dict[int, dict[str, Any]]) -> str:
    """How many documents' answers are the same, or how far apart their log-probabilities are."""
    if "text" in said[0]:
        same = sum(row["text"] == theirs[int(row["question"])]["resps"][0][0] for row in said)
        return f"answers that are the same: {same} of {len(said)}"
    worst, number = 0.0, 0
    for row in said:
        for (value, _), resp in zip(row["log_probabilities"], theirs[int(row["question"])]["resps"], strict=True):
            other = resp[0] if not isinstance(resp[0], list) else resp[0][0]
            worst, number = max(worst, abs(value - float(other))), number + 1
    return f"{len(said)} documents, {number} log-probabilities, at most {worst:.1e} apart"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=50, help="questions a task")
    parser.add_argument("--no-chat-template", action="store_true")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder, templated = arguments.folder, not arguments.no_chat_template
    folder.mkdir(parents=True, exist_ok=True)
    from grlo_lite.models import trained_adapter

    subject = arguments.subject
    if not any((subject / name).is_file() for name in ("recipe.yaml", "adapter_config.json")):
        subject = drawn_adapter(subject, folder / "adapter")
    data = folder / "data"
    lm_eval_files.write(data, arguments.count)
    evaluation, answers = ours(subject, data, templated)
    write_models(trained_adapter.find(subject, None), folder)
    write_yaml(data, data / "own")
    for arm in ("base", "tuned"):
        theirs = by_command_line(
            folder / arm, data / "own", folder / f"{arm}-{'' if templated else 'no-'}template", templated
        )
        print("\n".join(compared(evaluation, answers, theirs, arm)), flush=True)


if __name__ == "__main__":
    main()
