"""What a run says at its end: the table of base against tuned, and the adapter's model card."""

from typing import Any

from grlo_lite.recipe import Recipe
from grlo_lite.rundir import RunDir


def table(evaluation: dict[str, Any], run: RunDir) -> str:
    """The last lines of a run: base against tuned with 95 % intervals, and what to type next."""
    rows: list[tuple[str, ...]] = [("", "questions", "base", "tuned", "difference", "95 % interval")]
    for task in evaluation["tasks"]:
        rows.append((f"{task['domain']} ({task['metric']})", str(task["n"]), *numbers(task)))
    if "average" in evaluation:
        rows.append(("average accuracy", "", *numbers(evaluation["average"])))
    lines = aligned(rows, left=1)
    commands = {
        f"python -m grlo_lite.evaluate {run.path}": "in full: both kinds of base, chat judged, answers kept",
        f"head -n 4 {run.samples}": "what was said at the first step",
        "python -m grlo_lite.train seed=1": "the same with another seed",
        "python -m grlo_lite.train reward.shuffle=true": "the control: shuffled rewards must teach nothing",
    }
    width = max(map(len, commands))
    following = [f"  {command.ljust(width)}  # {note}" for command, note in commands.items()]
    return "\n".join(["", *lines, "", f"the adapter is in {run.adapter}; next:", *following])


def numbers(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """A row of evaluation.json as a table shows it: base, tuned, difference, interval."""
    interval = f"[{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
    return f"{row['base']:.3f}", f"{row['tuned']:.3f}", f"{row['difference']:+.3f}", interval


def aligned(rows: list[tuple[str, ...]], left: int) -> list[str]:
    """The rows as lines of equally wide cells; the first `left` columns are flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def model_card(recipe: Recipe, name: str, base: str, evaluation: dict[str, Any]) -> str:
    """The adapter's README: what it is, how to load it, what was measured."""
    quantized = ", quantization_config=nf4" if recipe.model.quantization == "nf4" else ""
    return f"""---
base_model: {base}
library_name: peft
tags: [grlo, lora, trl, {recipe.algorithm.name}]
---

# {name}

A LoRA adapter (rank {recipe.lora.rank}) trained with grlo_lite by {recipe.algorithm.name.upper()} against the
reward model `{recipe.reward.name}` on the prompts of
`{", ".join(part.source for part in recipe.prompts.parts())}`, seed {recipe.seed}. The base was in
{"NF4 with double quantization" if quantized else "full precision"}; load it the same way:

```python
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, BitsAndBytesConfig, GenerationConfig

nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
model = AutoPeftModelForCausalLM.from_pretrained("ADAPTER"{quantized})
tokenizer = AutoTokenizer.from_pretrained("ADAPTER")
stop = GenerationConfig.from_pretrained("ADAPTER")  # the base model itself does not stop at the end of a turn
question = [{{"role": "user", "content": "…"}}]
ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
answer = model.generate(**ids, generation_config=stop, max_new_tokens={recipe.rollout.max_tokens})
```

| | n | base | tuned | difference | 95 % interval |
| --- | --- | --- | --- | --- | --- |
""" + "".join(
        f"| {task['domain']} ({task['metric']}) | {task['n']} | {' | '.join(numbers(task))} |\n"
        for task in evaluation["tasks"]
    )
