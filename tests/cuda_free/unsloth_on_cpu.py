"""Runs Unsloth's code for a GPU on a CPU (UNSLOTH_ALLOW_CPU=1), and prints what it found as one line of JSON.

A process of its own: Unsloth patches what it finds, for good. `test_unsloth_on_cpu.py` runs it once.
"""

import inspect
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1])
os.environ.update(
    UNSLOTH_ALLOW_CPU="1",
    UNSLOTH_DISABLE_STATISTICS="1",
    UNSLOTH_COMPILE_LOCATION=str(FOLDER / "cache"),
    TORCHINDUCTOR_ERROR_ON_CUSTOM_OP_ALIASING="0",  # else an error where CI is set: Unsloth's compiled mask is a view
)
import unsloth  # noqa: E402, F401, I001
import torch  # noqa: E402
import trl  # noqa: E402
from transformers.models.qwen3 import modeling_qwen3  # noqa: E402
from unsloth.models import llama, rl  # noqa: E402
from unsloth.models.qwen3 import FastQwen3Model  # noqa: E402
from unsloth_zoo.tokenizer_utils import patch_tokenizer  # noqa: E402

from grlo_lite.generation import twin_check  # noqa: E402
from grlo_lite.generation.decoding import Answers, Prompts, decode  # noqa: E402
from grlo_lite.generation.llama import llama as lean  # noqa: E402
from grlo_lite.generation.request import Sampling  # noqa: E402
from grlo_lite.generation.stock import Stock  # noqa: E402
from grlo_lite.generation.twin import Twin, base_of  # noqa: E402
from grlo_lite.models import chat_template, names, reward_model  # noqa: E402
from grlo_lite.models import policy as policies  # noqa: E402
from grlo_lite.models import unsloth as ours  # noqa: E402
from grlo_lite.models.backends import Place  # noqa: E402
from grlo_lite.recipe import loading as recipes  # noqa: E402
from grlo_lite.recipe.schema import Judge, Lora, Model  # noqa: E402
from grlo_lite.training.algorithms import ALGORITHMS  # noqa: E402
from grlo_lite.training.trainer import _shared_options  # noqa: E402
from grlo_lite.training.trl_inside import LARGEST_RATIO  # noqa: E402

CPU = torch.device("cpu")
RECIPES = {
    "dapo": ["algorithm.loss=dapo", "algorithm.scale_rewards=batch"],
    "dr_grpo": ["algorithm.loss=dr_grpo", "algorithm.scale_rewards=group"],
    "kl": ["algorithm.kl=0.01", "algorithm.updates_per_rollout=2"],
    "rloo": ["algorithm.name=rloo", "algorithm.scale_rewards=batch"],
}
USED = (
    "loss_type", "scale_rewards", "epsilon", "epsilon_high", "mask_truncated_completions", "beta",
    "normalize_advantages", "num_iterations", "steps_per_generation", "generation_batch_size",
    "num_generations", "gradient_accumulation_steps", "per_device_train_batch_size", "temperature", "top_p",
    "top_k", "max_completion_length", "max_grad_norm", "weight_decay", "learning_rate", "lr_scheduler_type",
    "warmup_steps", "optim", "max_steps", "shuffle_dataset", "bf16", "fp16", "importance_sampling_level",
    "top_entropy_quantile", "delta", "disable_dropout",
)  # fmt: skip


def arguments() -> dict[str, dict[str, str]]:
    """What the recipes' configurations come to, with whatever TRL's classes are now."""
    found = {}
    for name, words in RECIPES.items():
        recipe = recipes.load("microcosm", words)
        options = _shared_options(recipe, FOLDER, CPU, 8)
        _, config = ALGORITHMS[recipe.algorithm.name](recipe.algorithm, options)
        found[name] = {key: str(getattr(config, key)) for key in USED if hasattr(config, key)}
    return found


def padded(folder: Path) -> dict[str, Any]:
    """A shipped tokenizer before and after Unsloth has looked at it."""
    tokenizer = chat_template.load_tokenizer(str(folder), "main")
    before = tokenizer.pad_token
    _, after = patch_tokenizer(None, tokenizer)
    return {"before": before, "after": after.pad_token, "size": len(after)}


def twins_of(model: Any) -> dict[str, Any]:
    """Twins of a policy that are made only now, after Unsloth's patches: whose rotary class the stock one has, and how
    far each one's log-probabilities of what it says are from the policy's.
    """
    base, found = base_of(model), {}
    ids_BP = torch.arange(100, 130).view(3, 10)
    asked = Prompts(ids_BP, torch.ones_like(ids_BP, dtype=torch.bool), [2], 0)
    for name, kind in (("lean", lean), ("stock", Stock)):
        made = kind(base, True)
        answers = Answers(asked, Sampling(20))
        decode(Twin(made, base.config.num_hidden_layers), asked, answers, 3)
        found[name] = twin_check.mean_difference(model, asked, answers)
        if isinstance(made, Stock):
            found["rotary"] = type(made.model.model.rotary_emb).__module__.split(".")[0]
    return found


def checkpointing(model: Any) -> bool:
    flags = [m.gradient_checkpointing for m in model.modules() if hasattr(m, "gradient_checkpointing")]
    return any(flags)


def losses(module: Any) -> list[float]:
    """Unsloth's loss of tokens to which the sampler gave the policy's probability, a half and a tenth of it, as
    `trl_inside.sample_through` sets it, over the first one.
    """
    logps, ones = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]]), torch.ones(2, 2)
    settings = {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": LARGEST_RATIO}
    settings |= {"use_vllm": True, "vllm_importance_sampling_correction": True, "loss_type": "grpo"}
    found = [
        float(
            module.grpo_compute_loss(
                None, logps, logps, logps - torch.tensor(times).log(), ones.long(), ones, 0.0, torch.ones(2), **settings
            )[0]
        )
        for times in (1.0, 2.0, 10.0)
    ]
    return [loss / found[0] for loss in found]


def loss_reads(module: Any) -> list[str]:
    """The settings of the correction that Unsloth's loss reads, and off what."""
    code = inspect.getsource(module.grpo_accumulated_loss)
    return sorted(set(re.findall(r"getattr\((trainer(?:\.args)?, [\"']vllm_importance_sampling_\w+)", code)))


def main() -> dict[str, Any]:
    stock = arguments()
    policy = policies.load(Model(name="microcosm"), Lora(rank=4, alpha=8), Place(CPU), 64, 0)
    judge = reward_model.load(Judge(name="microcosm"), CPU, 512, 8192)
    alone = reward_model.fixed_scores(judge)
    before = llama._snapshot_transformers_modules(FastQwen3Model)  # what loading a Qwen3 policy patches, as 2026.10.9
    FastQwen3Model.pre_patch()
    llama._record_pre_patch_changes(before)  # does it: for its own models alone
    llama._gate_pre_patch_to_unsloth_models(before)
    beside = reward_model.fixed_scores(judge)
    twins = twins_of(policy.model)
    for trainer in ("grpo_trainer", "rloo_trainer"):
        rl._patch_trl_rl_trainers_impl(trainer)
    patched = arguments()

    model, tokenizer = patch_tokenizer(policy.model, policy.tokenizer)
    ended = tokenizer("fine.<|im_end|>")["input_ids"] + 2 * [tokenizer.pad_token_id]
    module = sys.modules[trl.GRPOTrainer.__module__]
    mask = module.create_completion_attention_mask(
        torch.tensor([ended]), torch.zeros(1, dtype=torch.long), 0, tokenizer.pad_token_id
    )

    model.for_training = lambda **options: llama.FastLlamaModel.for_training(model, **options)
    model._unsloth_gradient_checkpointing = True
    llama.FastLlamaModel.for_training(model, use_gradient_checkpointing=True)
    armed = [checkpointing(model)]
    llama.FastLlamaModel.for_inference(model)
    model.train()
    armed.append(checkpointing(model))
    llama.FastLlamaModel.for_inference(model)
    ours.to_training(model)
    armed.append(checkpointing(model) and model.training)

    return {
        "trainers": sorted(path.name for path in (FOLDER / "cache").glob("Unsloth*Trainer.py")),
        "module": trl.GRPOTrainer.__module__,
        "stock": stock,
        "patched": patched,
        "scores": [alone, beside],
        "twins": twins,
        "patched_rotary": modeling_qwen3.Qwen3RotaryEmbedding.__module__.split(".")[0],
        "pads": {folder.name: padded(folder) for folder in (names.POLICY, names.REWARD, names.HELDOUT)},
        "policy_pad": [tokenizer.pad_token, model.config.pad_token_id, tokenizer.pad_token_id],
        "mask": mask[0].tolist(),
        "ids": ended,
        "stops": chat_template.stop_token_ids(tokenizer),
        "armed": armed,
        "losses": losses(module),
        "loss_reads": loss_reads(module),
    }


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(main()) + "\n")
