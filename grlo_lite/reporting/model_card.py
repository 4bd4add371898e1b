"""The adapter's README."""

from typing import Any

from grlo_lite.recipe.schema import Recipe
from grlo_lite.wording import numbers


def model_card(
    recipe: Recipe, name: str, base: str | None, evaluation: dict[str, Any], lineage: list[dict[str, Any]]
) -> str:
    """The adapter's README: what it is, what it went on from, how to load it, what was measured. `base` is the base
    model's id on the Hub, None where it has none: a folder of this machine is nobody's base model.
    """
    reward = f"reward model `{recipe.reward.name}`"
    if recipe.reward.said != recipe.reward.name:
        reward = f"reward `{recipe.reward.said}`"
    quantized = ", quantization_config=nf4" if recipe.model.quantization == "nf4" else ""
    return f"""---
{f"base_model: {base}" if base else "# the base model is on no Hub"}
library_name: peft
tags: [grlo, lora, trl, {recipe.algorithm.name}]
---

# {name}

A LoRA adapter (rank {recipe.lora.rank}) trained with grlo_lite by {recipe.algorithm.name.upper()} against the
{reward} on the prompts of
`{", ".join(part.source for part in recipe.prompts.parts())}`, seed {recipe.seed}. {_told(lineage)}The base was in
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


def _told(lineage: list[dict[str, Any]]) -> str:
    """What training went on from, a sentence a stage."""
    return "".join(
        f"It went on from the adapter of `{row.get('recipe', row['adapter'])}` (reward "
        f"`{row.get('reward', 'not known')}`, {row.get('rollouts', 'unknown')} rollouts, SHA-256 "
        f"`{row['adapter_sha256'][:16]}…`). "
        for row in reversed(lineage)
    )
