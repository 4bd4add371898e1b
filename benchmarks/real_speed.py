"""A step of `real_language.py`'s run beside a bare TRL script's at the same work, and beside the plan after `--probe`.

Both sides load the same policy in NF4 with the same LoRA and the same judge, ask the same prompts in the same order,
compute in the same dtype and make as many updates of a rollout. No completion ends before `rollout.max_tokens`, so both
generate and score as many tokens, and the kit's engine gains nothing from rows that end early. TRL's side is what its
documentation shows: GRPOTrainer with a 4-bit model, `peft_config`, and the judge as `reward_funcs`, scored as TRL does.
"""

import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS = 3  # measured; one more warms up


def measured(side: str, recipe: Any) -> dict[str, Any]:
    """Wall and CPU seconds of each step of one side, and its completions' tokens; `planned` on the kit's side."""
    return our_steps(recipe, ends=side == "planned") if side != "trl" else trl_steps(recipe)


def compared(command: list[str], recipe: Any) -> tuple[dict[str, Any], str]:
    """Each side in a process of its own, one after the other: the content of the JSON, and a line to print."""
    from grlo_lite.machine import versions

    sides = {side: in_a_process([*command, "--side", side]) for side in ("ours", "trl", "planned")}
    medians = {side: statistics.median(found["seconds"]) for side, found in sides.items()}
    ratio, plan = medians["ours"] / medians["trl"], sides["planned"]["plan"]
    of_plan = medians["planned"] / sum(plan.values())
    result = {
        "command": " ".join(["python benchmarks/real_language.py", *command[2:], "--speed"]),
        "versions": versions.versions(),
        "rollouts": recipe.rollout.batch,
        "max_tokens": recipe.rollout.max_tokens,
        "updates_per_rollout": recipe.algorithm.updates_per_rollout,
        "sides": sides,
        "median_seconds": medians,
        "ours_over_trl": ratio,
        "measured_over_planned": of_plan,
    }
    said = (
        f"a step: ours {medians['ours']:.1f} s, bare TRL {medians['trl']:.1f} s, ours / TRL {ratio:.2f}; "
        f"completions as long as the plan takes them {medians['planned']:.1f} s, planned after --probe "
        f"{sum(plan.values()):.1f} s, measured / planned {of_plan:.2f}"
    )
    return result, said


def in_a_process(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


class Steps:
    """The moments between steps: a step ends where the next one's completions are asked for."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []
        self.tokens: list[int] = []

    def mark(self) -> None:
        self.marks.append((time.monotonic(), time.process_time()))

    def seconds(self) -> dict[str, Any]:
        """Of the steps after the first."""
        pairs = list(zip(self.marks[1:], self.marks[2:], strict=False))
        return {
            "seconds": [b[0] - a[0] for a, b in pairs],
            "cpu_seconds": [b[1] - a[1] for a, b in pairs],
            "completion_tokens": self.tokens[1 : 1 + len(pairs)],
        }


def timed_generate(model: Any, steps: Steps) -> None:
    """From now on `model.generate`, by which TRL's side rolls out, marks each call and ends no completion early."""
    from transformers import LogitsProcessorList

    plain, stops = model.generate, model.generation_config.eos_token_id

    def process(_: Any, scores_BV: Any) -> Any:
        scores_BV[:, stops] = -math.inf
        return scores_BV

    def generate(**inputs: Any) -> Any:
        steps.mark()
        return plain(logits_processor=LogitsProcessorList([process]), **inputs)

    model.generate = generate


def timed_decoder(steps: Steps, ends: bool) -> None:
    """From now on the kit's rollout engines mark each rollout, and their decoder ends no completion early; or, with
    `ends`, each at a length that its first token decides, evenly between 2 and the longest, which the plan assumes.

    The engine's first look at whether its twin is the policy is left out: what is said is not what that would say.
    """
    import torch

    from grlo_lite.generation import engines

    class HeldAnswers(engines.Answers):
        def __init__(self, prompts: Any, sampling: Any) -> None:
            super().__init__(prompts, sampling)
            self.stops, self.longest = prompts.ends, sampling.max_tokens

        def take(self, logits_SV: Any, row_S: Any, count_S: Any) -> Any:
            logits_SV[:, self.stops] = -math.inf
            if ends:
                first_S = self.said_BT[row_S, 0]
                length_S = 2 + (first_S * 2_654_435_761 % 2**32) * (self.longest - 1) // 2**32
                over_S = (count_S > 0) & (count_S + 1 >= length_S)
                only_end_V = torch.full_like(logits_SV[0], -math.inf)
                only_end_V[self.stops[0]] = 0.0
                logits_SV = torch.where(over_S[:, None], only_end_V, logits_SV)
            return super().take(logits_SV, row_S, count_S)

    def timed(engine: Any) -> Any:
        def made(model: Any, recipe: Any, halvings: Any) -> Any:
            rollouts = engine(model, recipe, halvings)
            rollouts.checked = True

            def generate(**inputs: Any) -> Any:
                steps.mark()
                return rollouts(**inputs)

            return generate

        return made

    engines.Answers = HeldAnswers
    engines.ENGINES |= {name: timed(engines.ENGINES[name]) for name in ("compact", "folded")}


def our_steps(recipe: Any, ends: bool) -> dict[str, Any]:
    """`grlo_lite.train` as it is. With `ends`, after `grlo_lite.plan --probe`, whose plan comes with it."""
    from grlo_lite import train
    from grlo_lite.recipe import loading

    steps = Steps()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        changed = {
            "budget": recipe.budget.model_copy(update={"steps": STEPS + 2, "checkpoint_every": 1000}),
            "evaluation": recipe.evaluation.model_copy(update={"heldout_prompts": 0}),
        }
        path = here / "speed.yaml"
        path.write_text(loading.dumped(recipe.model_copy(update=changed)), encoding="utf-8")
        plan = planned(path, here / "probes.json") if ends else None
        timed_decoder(steps, ends)
        if train.main([str(path), "--run-dir", str(here / "run")]):
            raise SystemExit("the run failed")
        metrics = [json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    if len(steps.marks) != STEPS + 2:
        raise SystemExit(f"rollout.engine={recipe.rollout.engine} made {len(steps.marks)} rollouts by the kit")
    steps.tokens = [line["generated_tokens_step"] for line in metrics]
    whole = recipe.rollout.batch * recipe.rollout.max_tokens
    if not ends and set(steps.tokens) != {whole}:
        raise SystemExit(f"completions ended early: {steps.tokens} tokens a step and not {whole}")
    phases = ("rollout_seconds", "reward_seconds", "update_seconds")
    return steps.seconds() | {"phases": [{p: line[p] for p in phases} for line in metrics], "plan": plan}


def planned(path: Path, probes: Path) -> dict[str, float]:
    """Seconds of a step by phase as `grlo_lite.plan --probe` has them, told how long the prompts are, which it would
    else take to be a quarter of `prompts.max_tokens` on average.
    """
    from grlo_lite import plan
    from grlo_lite.planning import planner, this_machine, timing
    from grlo_lite.recipe import loading

    os.environ["GRLO_LITE_PROBES"] = str(probes)
    recipe = loading.load(str(path), [])
    timing.PROMPTS[str(recipe.prompts.source)] = prompt_lengths(recipe)
    plan.main([str(path), "--probe"])
    return planner.plan(recipe, this_machine.this_card(recipe.cpu_dtype)).seconds


def prompt_lengths(recipe: Any) -> tuple[int, int]:
    """Tokens of an average prompt of the recipe and of the longest."""
    from grlo_lite.models.chat_template import formatted, load_tokenizer
    from grlo_lite.prompts import prepared

    tokenizer = load_tokenizer(recipe.model.name, "main")
    rows = prepared.prompt_rows(recipe).train
    lengths = [len(tokenizer(formatted(tokenizer, row), add_special_tokens=False)["input_ids"]) for row in rows]
    return round(sum(lengths) / len(lengths)), max(lengths)


def trl_steps(recipe: Any) -> dict[str, Any]:
    """A bare TRL script. The workaround for CPUs with AVX512-BF16 is ours: without it no adapter would learn."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        BitsAndBytesConfig,
        TrainerCallback,
    )
    from trl import GRPOConfig, GRPOTrainer

    from grlo_lite import prompts
    from grlo_lite.machine.device import float_dtype
    from grlo_lite.models.quantization import keep_cpu_weights_unpacked
    from grlo_lite.prompts import prepared

    dtype, rollout = float_dtype("cpu", recipe.cpu_dtype), recipe.rollout
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    policy = AutoModelForCausalLM.from_pretrained(recipe.model.name, quantization_config=nf4, dtype=dtype)
    keep_cpu_weights_unpacked(policy)
    judge: Any = AutoModelForSequenceClassification.from_pretrained(recipe.reward.name, num_labels=1, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(recipe.model.name, padding_side="left")
    updates, micro = recipe.algorithm.updates_per_rollout, recipe.optimizer.micro_batch
    accumulation = rollout.batch // updates // micro
    rows = prompts.ordered(prepared.prompt_rows(recipe).train, (STEPS + 2) * rollout.batch // rollout.group_size, 0)
    steps = Steps()

    class Tokens(TrainerCallback):
        def on_train_end(self, *_: Any, **__: Any) -> None:
            steps.mark()

    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=policy,
            reward_funcs=judge,
            reward_processing_classes=AutoTokenizer.from_pretrained(recipe.reward.name),
            args=GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=micro,
                gradient_accumulation_steps=accumulation,
                steps_per_generation=accumulation * updates,
                num_generations=rollout.group_size,
                max_completion_length=rollout.max_tokens,
                loss_type="dr_grpo",
                scale_rewards="none",
                beta=recipe.algorithm.kl,
                learning_rate=recipe.optimizer.learning_rate,
                max_steps=(STEPS + 2) * updates,
                use_cpu=True,
                bf16=dtype == torch.bfloat16,
                gradient_checkpointing=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_strategy="no",
            ),
            train_dataset=Dataset.from_dict({"prompt": rows}),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=recipe.lora.rank, lora_alpha=recipe.lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            callbacks=[Tokens()],
        )
        timed_generate(trainer.model, steps)
        trainer.train()
    steps.tokens = [rollout.batch * rollout.max_tokens] * (STEPS + 2)
    return steps.seconds()
