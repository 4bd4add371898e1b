"""The other side: what TRL's documentation shows, with PEFT and bitsandbytes."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.full_shape.clock import Phases, capped, clock, loaded, what_was_measured
from benchmarks.full_shape.random_models import END, LORA_RANK, SEED, SHAPES, ends_rows


def trl_side(arguments: argparse.Namespace) -> dict[str, Any]:
    """What TRL's documentation shows: GRPOTrainer with a 4-bit model and `peft_config`; 8-bit Adam on a GPU.

    Its own scoring is one forward over all completions, which fits no 24 GB; here they go by eights, as a careful
    user would have them.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl import GRPOTrainer

    device, shape, folder = capped(arguments), SHAPES[arguments.shape], arguments.folder
    policy = four_bit(AutoModelForCausalLM, folder / "policy", device)
    judge = four_bit(AutoModelForSequenceClassification, folder / "reward", device).eval()
    words = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left", eos_token="<|im_end|>")
    policy.generation_config.eos_token_id = END
    rewards = scoring_by_eights(judge, AutoTokenizer.from_pretrained(folder / "reward"))
    phases = Phases(device.type == "cuda")
    watch, timed = clock(rewards, phases, arguments.profile)
    prompts = [json.loads(line)["prompt"] for line in (folder / "prompts.jsonl").read_text().splitlines()]
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=timed,
        args=trl_settings(arguments, device),
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": p}] for p in prompts]}),
        processing_class=words,
        peft_config=LoraConfig(
            r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[watch],
    )
    ends_rows(trainer.model, shape)
    before = loaded(device)
    trainer.train()
    return what_was_measured(phases, before)


def trl_settings(arguments: argparse.Namespace, device: Any) -> Any:
    from trl import GRPOConfig

    from grlo_lite.machine.device import float_dtype

    shape = SHAPES[arguments.shape]
    rollouts, group, micro = shape["rollouts"]
    in_16_bits = str(float_dtype(device)).removeprefix("torch.")
    return GRPOConfig(
        output_dir=str(arguments.folder / "trl"),
        seed=SEED,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=rollouts // micro,
        num_generations=group,
        max_completion_length=shape["tokens"][3],
        loss_type="dr_grpo",
        scale_rewards="none",
        beta=0.0,
        learning_rate=1e-5,
        max_steps=arguments.steps + 1,
        optim="adamw_8bit" if device.type == "cuda" else "adamw_torch",
        use_cpu=device.type == "cpu",
        bf16=in_16_bits == "bfloat16",
        fp16=in_16_bits == "float16",
        gradient_checkpointing=device.type == "cuda",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )


def four_bit(kind: Any, folder: Path, device: Any) -> Any:
    """A model in NF4, as bitsandbytes' documentation loads it; the workaround for CPUs with AVX512-BF16 is ours."""
    from transformers import BitsAndBytesConfig

    from grlo_lite.machine.device import float_dtype
    from grlo_lite.models.quantization import keep_cpu_weights_unpacked

    dtype = float_dtype(device)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["score", "lm_head"],
    )
    model = kind.from_pretrained(folder, quantization_config=nf4, dtype=dtype, device_map={"": device})
    keep_cpu_weights_unpacked(model)
    return model


def scoring_by_eights(judge: Any, words: Any) -> Callable[..., list[float]]:
    import torch

    def score(prompts: Any, completions: Any, **_: Any) -> list[float]:
        texts = [words.apply_chat_template(p + c, tokenize=False) for p, c in zip(prompts, completions, strict=True)]
        scores: list[float] = []
        for start in range(0, len(texts), 8):
            batch = words(texts[start : start + 8], return_tensors="pt", padding=True, add_special_tokens=False)
            with torch.inference_mode():
                scores += judge(**batch.to(judge.device)).logits[:, 0].float().tolist()
        return scores

    return score
