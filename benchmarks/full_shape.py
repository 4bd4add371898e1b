"""The kit's training path beside a bare TRL script, at a model's full shape: `python benchmarks/full_shape.py`.

Policy and reward model get random weights on the spot, so nothing is downloaded. Their tokenizer splits at spaces and
has a word for every token, so that a text survives being decoded and encoded again. A completion ends where a
log-normal says, as a function of its first token, which a random policy draws evenly: the same work for any engine, in
any order. The kit's side is `grlo_lite.train` itself; TRL's is what its documentation shows, with PEFT and
bitsandbytes. Each runs in a process of its own, under the same cap of GPU memory, so that a larger card stands for a
smaller one.

    python benchmarks/full_shape.py                                      Qwen3-4B with an 8B judge under 24 GiB
    python benchmarks/full_shape.py --shape qwen3-4b-16gb --cap-gib 16
    python benchmarks/full_shape.py --probe                              beside a plan by the rates of this device
    python benchmarks/full_shape.py --longest                            its peak memory at the recipe's longest texts
    python benchmarks/full_shape.py --shape microcosm --steps 2          on a CPU
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
)
QWEN3_4B = dict(zip(SIZES, (2560, 9728, 36, 32, 8, 128, 151_936, True), strict=True))
QWEN3_17B = dict(zip(SIZES, (2048, 6144, 28, 16, 8, 128, 151_936, True), strict=True))
LLAMA_8B = dict(zip(SIZES, (4096, 14_336, 32, 32, 8, 128, 128_256, False), strict=True))
MIDDLE = dict(zip(SIZES, (512, 1536, 8, 8, 2, 64, 32_064, True), strict=True))
TINY = dict(zip(SIZES, (128, 384, 4, 4, 2, 32, 768, True), strict=True))

# policy, reward model and its family, and the work of a step: prompt tokens, completion tokens (median, 95th
# percentile, longest), rollouts, group, micro-batch
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-4b-24gb": {
        "policy": QWEN3_4B,
        "reward": LLAMA_8B,
        "family": "llama",
        "tokens": (128, 300, 900, 1024),
        "rollouts": (64, 8, 2),
        "cap_gib": 24,
    },
    "qwen3-4b-16gb": {
        "policy": QWEN3_4B,
        "reward": QWEN3_17B,
        "family": "qwen3",
        "tokens": (128, 300, 900, 1024),
        "rollouts": (64, 8, 1),
        "cap_gib": 16,
    },
    "middle": {
        "policy": MIDDLE,
        "reward": MIDDLE,
        "family": "qwen3",
        "tokens": (64, 80, 240, 256),
        "rollouts": (32, 8, 4),
        "cap_gib": None,
    },
    "microcosm": {
        "policy": TINY,
        "reward": TINY,
        "family": "qwen3",
        "tokens": (16, 16, 48, 64),
        "rollouts": (16, 4, 4),
        "cap_gib": None,
    },
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "user", "assistant", "<unknown>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
END, ANSWERER = SPECIAL.index("<|im_end|>"), SPECIAL.index("assistant")
# Tokens around a prompt: the start, role and end of its turn, the start and role of the answer
TEMPLATE_TOKENS = 5
LORA_RANK, SEED = 32, 0
PHASES = ("rollout", "reward", "update")
TASKS = ("models", "ours", "trl")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-4b-24gb")
    parser.add_argument("--steps", type=int, default=3, help="measured steps; one more warms up")
    parser.add_argument("--cap-gib", type=float, help="GPU memory a side may use (default: the shape's)")
    parser.add_argument("--engine", default="auto", help="the kit's rollout.engine")
    parser.add_argument("--backend", default="transformers", choices=("transformers", "unsloth"))
    parser.add_argument("--only", choices=("ours", "trl"), help="leave the other side out")
    parser.add_argument(
        "--longest",
        action="store_true",
        help="the kit's side alone, a step whose prompts and completions are all as long as the recipe of that name "
        "allows, with the sizes that it takes: peak memory by phase beside the plan",
    )
    parser.add_argument("--probe", action="store_true", help="plan by what this device reaches, measured first")
    parser.add_argument("--profile", action="store_true", help="print where the last step's time goes, by operator")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the JSON goes")
    parser.add_argument("--side", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.longest:
        arguments.steps, arguments.only = 1, "ours"
    if arguments.side:
        measured = {"models": build_models, "ours": our_side, "trl": trl_side}[arguments.side](arguments)
        (arguments.folder / f"{arguments.side}.json").write_text(json.dumps(measured))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        in_a_process(arguments, "models")
        sides = {side: in_a_process(arguments, side) for side in ("ours", "trl") if arguments.only in (None, side)}
    result = summary(arguments, sides)
    arguments.out.mkdir(parents=True, exist_ok=True)
    named = arguments.shape + ("-longest" if arguments.longest else "")
    path = arguments.out / f"{named}-{'-'.join(result['device'].lower().split())}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{table(result)}\n{path}")
    return 0


def in_a_process(arguments: argparse.Namespace, task: str) -> dict[str, Any]:
    """What one task, in a process of its own, wrote down."""
    own = [sys.executable, __file__, "--folder", str(arguments.folder), "--shape", arguments.shape]
    own += ["--steps", str(arguments.steps), "--engine", arguments.engine, "--backend", arguments.backend]
    own += ["--cap-gib", str(arguments.cap_gib)] if arguments.cap_gib else []
    own += [f"--{flag}" for flag in ("profile", "longest", "probe") if getattr(arguments, flag)]
    done = subprocess.run([*own, "--side", task], check=False)
    written = arguments.folder / f"{task}.json"
    if done.returncode:
        raise SystemExit(f"{task} ended with {done.returncode}")
    return json.loads(written.read_text())


# --- models, tokenizer, prompts, lengths -----------------------------------------------------------------------------


def build_models(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes policy, reward model and prompts into the folder. Returns how long that took."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, Qwen3Config

    from grlo_lite.machine.device import float_dtype, this_device

    began, shape, folder = time.monotonic(), SHAPES[arguments.shape], arguments.folder
    device = this_device()
    more = {"pad_token_id": 0, "eos_token_id": 0, "bos_token_id": None, "max_position_embeddings": 32_768}
    policy = Qwen3Config(**shape["policy"], **more)
    reward = (LlamaConfig if shape["family"] == "llama" else Qwen3Config)(**shape["reward"], **more)
    reward.num_labels = 1
    torch.manual_seed(SEED)
    for name, config, kind in (
        ("policy", policy, AutoModelForCausalLM),
        ("reward", reward, AutoModelForSequenceClassification),
    ):
        with torch.device(device):
            model = kind.from_config(config, dtype=float_dtype(device))
        model.save_pretrained(folder / name)
        del model
        tokenizer(config.vocab_size).save_pretrained(folder / name)
    shortest, longest = prompt_words(arguments)
    prompts = random_prompts(policy.vocab_size, shortest, longest, (arguments.steps + 1) * groups(shape))
    rows = [json.dumps({"prompt": prompt}) for prompt in prompts]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    return {"seconds": time.monotonic() - began}


def tokenizer(words: int) -> Any:
    """A tokenizer of so many words, one token each, split at spaces; it has a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), words))])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    whole = PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unknown>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    whole.chat_template = TEMPLATE
    return whole


def random_prompts(words: int, shortest: int, longest: int, count: int) -> list[str]:
    """So many distinct prompts of evenly drawn words, between the shortest and the longest."""
    import random

    rng = random.Random(SEED)
    lengths = [rng.randint(shortest, longest) for _ in range(count)]
    return [" ".join(f"w{rng.randrange(len(SPECIAL), words)}" for _ in range(length)) for length in lengths]


def prompt_words(arguments: argparse.Namespace) -> tuple[int, int]:
    """Words of the shortest and of the longest prompt, which the template makes TEMPLATE_TOKENS longer."""
    prompt_tokens = SHAPES[arguments.shape]["tokens"][0]
    if not arguments.longest:
        return prompt_tokens // 2, prompt_tokens
    words = limits(arguments)["prompts"] - TEMPLATE_TOKENS
    return words, words


def limits(arguments: argparse.Namespace) -> dict[str, Any]:
    """The recipe's limits: tokens of prompts and completions, micro-batch. With `--longest` those of the shipped
    recipe of the shape's name, where there is one.
    """
    from grlo_lite.recipe import loading as recipes

    if arguments.longest and arguments.shape in recipes.shipped():
        recipe = recipes.load(arguments.shape, [])
        return {
            "prompts": recipe.prompts.max_tokens,
            "completions": recipe.rollout.max_tokens,
            "micro": recipe.optimizer.micro_batch,
        }
    shape = SHAPES[arguments.shape]
    prompt_tokens, *_, longest = shape["tokens"]
    return {"prompts": prompt_tokens + 16, "completions": longest, "micro": shape["rollouts"][2]}


def groups(shape: dict[str, Any]) -> int:
    rollouts, group, _ = shape["rollouts"]
    return rollouts // group


def length_of(first: Any, words: int, median: int, percentile_95: int) -> Any:
    """The tokens of a completion, its end included, that begins with the token `first`: a quantile of a log-normal."""
    evenly = (first.double() - len(SPECIAL) + 0.5) / (words - len(SPECIAL))
    sigma = math.log(percentile_95 / median) / 1.645
    normal = math.sqrt(2) * (2 * evenly - 1).erfinv()
    return (math.log(median) + sigma * normal).exp().round().clamp(min=2)


def ending(shape: dict[str, Any], never: bool = False) -> Callable[[Any, Any], Any]:
    """A logits processor that ends each row at its own length, wherever it stands in whatever batch, or never."""
    _, median, percentile_95, _ = shape["tokens"]

    def process(ids_BT: Any, scores_BV: Any) -> Any:
        import torch

        words, columns = scores_BV.shape[1], ids_BT.shape[1]
        start_B = columns - (ids_BT == ANSWERER).flip(1).int().argmax(1)  # where the completion begins
        first_B = ids_BT.gather(1, start_B.clamp(max=columns - 1)[:, None])[:, 0]
        said_B = columns - start_B
        ends_B = (not never) & (said_B > 0) & (said_B + 1 >= length_of(first_B, words, median, percentile_95))
        scores_BV[:, : len(SPECIAL)] = -math.inf
        scores_BV[:, END] = torch.where(ends_B, math.inf, -math.inf)
        return torch.where(ends_B[:, None], scores_BV.clamp(min=-1e4, max=1e4), scores_BV)

    return process


def ends_rows(model: Any, shape: dict[str, Any], never: bool = False) -> None:
    """From now on `model.generate` ends each completion at its own length, or never."""
    from transformers import LogitsProcessorList

    plain = model.generate
    model.generate = lambda **inputs: plain(logits_processor=LogitsProcessorList([ending(shape, never)]), **inputs)


def ends_decoded_rows(shape: dict[str, Any], never: bool = False) -> None:
    """From now on the kit's decoder ends each completion at its own length, or never; what it draws from is then no
    longer the policy's, so the comparison with the policy is left out.
    """
    from grlo_lite.generation import decoding, twin_check

    _, median, percentile_95, _ = shape["tokens"]
    plain = decoding.Answers.take

    def take(answers: Any, logits_SV: Any, row_S: Any, count_S: Any) -> Any:
        first_S = answers.said_BT[row_S, 0]
        at_length_S = count_S + 1 >= length_of(first_S, logits_SV.shape[1], median, percentile_95)
        ends_S = (not never) & (count_S > 0) & at_length_S
        logits_SV[:, : len(SPECIAL)] = -math.inf
        logits_SV[ends_S] = -math.inf
        logits_SV[ends_S, END] = 0.0
        return plain(answers, logits_SV, row_S, count_S)

    vars(decoding)["Answers"].take = take
    vars(twin_check)["require_the_policys"] = lambda *_: None


# --- the clock -------------------------------------------------------------------------------------------------------


class Phases:
    """The phases' seconds, peak memory and tokens of each step, told by `begin` and `end`."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.steps: list[dict[str, Any]] = []
        self.profile = ""

    def begin(self) -> None:
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self.began = time.monotonic()

    def end(self, phase: str) -> None:
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()
            self.steps[-1][f"{phase}_peak_bytes"] = torch.cuda.max_memory_allocated()
            self.steps[-1][f"{phase}_reserved_bytes"] = torch.cuda.max_memory_reserved()
        self.steps[-1][f"{phase}_seconds"] = time.monotonic() - self.began
        self.begin()


def clock(
    rewards: Callable[..., list[float]], phases: Phases, profile: bool
) -> tuple[Any, Callable[..., list[float | None]]]:
    """A callback for TRL's trainer and the reward function to hand to it, which together fill in `phases`.

    What stands before the rewards is the rollout, what comes after is the update.
    """
    import torch
    from transformers import TrainerCallback

    profiler = torch.profiler.profile()

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            phases.steps.append({})
            if profile and state.global_step + 1 == state.max_steps:
                profiler.start()
            phases.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            phases.end("update")
            if profile and state.global_step == state.max_steps:
                profiler.stop()
                phases.profile = operators(profiler, phases.on_gpu)

    def reward(prompts: Any, completions: Any, completion_ids: Any, **more: Any) -> list[float | None]:
        phases.end("rollout")
        given = rewards(prompts=prompts, completions=completions, completion_ids=completion_ids, **more)
        phases.steps[-1]["completion_tokens"] = sum(map(len, completion_ids))
        phases.steps[-1]["prompt_tokens"] = sum(len(p[-1]["content"].split()) for p in prompts)
        phases.end("reward")
        return list(given)

    return Clock(), reward


def operators(profiler: Any, on_gpu: bool) -> str:
    """The operators that took the most time, as a table."""
    by = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=60)


def capped(arguments: argparse.Namespace) -> Any:
    """The device, with the process held to the cap of GPU memory."""
    import torch

    from grlo_lite.machine.device import this_device

    device, cap = this_device(), arguments.cap_gib or SHAPES[arguments.shape]["cap_gib"]
    if device.type == "cuda" and cap:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap * 2**30 / total))
    return device


def what_was_measured(phases: Phases, loaded_bytes: int | None) -> dict[str, Any]:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    steps = phases.steps[1:]
    return {"steps": steps, "loaded_bytes": loaded_bytes, "peak_resident_bytes": peak, "profile": phases.profile}


def loaded(device: Any) -> int | None:
    import torch

    return torch.cuda.memory_allocated() if device.type == "cuda" else None


# --- the two sides ---------------------------------------------------------------------------------------------------


def our_recipe(arguments: argparse.Namespace, device: Any) -> dict[str, Any]:
    """The recipe that does the shape's work."""
    folder, allowed = arguments.folder, limits(arguments)
    rollouts, group, _ = SHAPES[arguments.shape]["rollouts"]
    return {
        "seed": SEED,
        "backend": arguments.backend,
        "model": {"name": str(folder / "policy")},
        "lora": {"rank": LORA_RANK, "alpha": 2 * LORA_RANK},
        "prompts": {
            "source": str(folder / "prompts.jsonl"),
            "max_tokens": allowed["prompts"],
            "near_duplicates": None,
            "decontaminate": False,
        },
        "rollout": {
            "group_size": group,
            "batch": rollouts,
            "max_tokens": allowed["completions"],
            "engine": arguments.engine,
        },
        "reward": {"name": str(folder / "reward")},
        "optimizer": {"name": "adamw_8bit" if device.type == "cuda" else "adamw", "micro_batch": allowed["micro"]},
        "budget": {"steps": arguments.steps + 1, "checkpoint_every": 1000},
        "evaluation": {"heldout_prompts": 0},
        "logging": {"samples_per_step": 0},
    }


def our_side(arguments: argparse.Namespace) -> dict[str, Any]:
    """`grlo_lite.train` as it is, with the clock beside its callbacks and completions that end where they are told."""
    from grlo_lite import plan, train
    from grlo_lite.models import loading as models

    device, shape, folder = capped(arguments), SHAPES[arguments.shape], arguments.folder
    (folder / "recipe.yaml").write_text(yaml.safe_dump(our_recipe(arguments, device)))
    if arguments.probe:
        os.environ["GRLO_LITE_PROBES"] = str(folder / "probes.json")
        plan.main([str(folder / "recipe.yaml"), "--probe"])
    load_policy = models.load_policy
    phases = Phases(device.type == "cuda")
    before: list[int | None] = []

    def loading(*words: Any) -> Any:
        from grlo_lite.training import loop  # TRL, which has to come after Unsloth

        policy = load_policy(*words)
        loop.composed_trainer = partial(training, loop.composed_trainer)
        ends_rows(policy.model, shape, never=arguments.longest)  # where the engine is `generate`
        ends_decoded_rows(shape, never=arguments.longest)
        return policy

    def training(trainer: Any, recipe: Any, materials: Any, output: Path, callbacks: Any, micro: int) -> Any:
        watch, timed = clock(materials.reward, phases, arguments.profile)
        before.append(loaded(device))
        return trainer(recipe, replace(materials, reward=timed), output, [watch, *callbacks], micro)

    models.load_policy = loading
    if train.main([str(folder / "recipe.yaml"), "--run-dir", str(folder / "run")]):
        raise SystemExit("the run failed")
    halved = json.loads((folder / "run" / "summary.json").read_text()).get("out_of_memory", [])
    return what_was_measured(phases, before[0]) | {"plan": planned(arguments), "out_of_memory": halved}


def planned(arguments: argparse.Namespace) -> dict[str, float]:
    """What `grlo_lite.plan` says of the same recipe on this card under the cap: GiB and seconds by phase."""
    from grlo_lite.planning import planner, this_machine
    from grlo_lite.recipe import loading as recipes

    said = planner.plan(recipes.load(str(arguments.folder / "recipe.yaml"), []), this_machine.this_card())
    memory = {f"{phase}_gib": sum(parts.values()) / 2**30 for phase, parts in said.vram.items()}
    return memory | {f"{phase}_seconds": seconds for phase, seconds in said.seconds.items()}


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


# --- the result ------------------------------------------------------------------------------------------------------


def summary(arguments: argparse.Namespace, sides: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The content of the JSON: what was run on what, each side's phases, and how they compare."""
    import torch

    from grlo_lite.machine import versions

    shape = SHAPES[arguments.shape]
    on_gpu = torch.cuda.is_available()
    phases = {side: phases_of(measured) for side, measured in sides.items()}
    ratio = {}
    if len(sides) == 2:
        ours, trl = phases["ours"], phases["trl"]
        ratio = {key: ours[key] / trl[key] for key in ("step_seconds", *(f"{phase}_seconds" for phase in PHASES))}
    return {
        "command": command(arguments),
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine() + " cpu",
        "driver": versions.driver() if on_gpu else None,
        "versions": versions.versions(),
        "threads": torch.get_num_threads(),
        "cap_gib": (arguments.cap_gib or shape["cap_gib"]) if on_gpu else None,
        "shape": shape,
        "engine": arguments.engine,
        "backend": arguments.backend,
        "steps": arguments.steps,
        "sides": phases,
        "ours_over_trl": ratio,
        "plan": sides.get("ours", {}).get("plan"),
        "planned_by_probe": arguments.probe,
        "out_of_memory": sides.get("ours", {}).get("out_of_memory"),
        "profile": {side: measured["profile"] for side, measured in sides.items() if measured["profile"]},
    }


def command(arguments: argparse.Namespace) -> str:
    """What to type for the same again, but for where the result goes."""
    given = [word for word in sys.argv[1:] if word not in ("--out", str(arguments.out))]
    return " ".join(["python benchmarks/full_shape.py", *given])


def phases_of(measured: dict[str, Any]) -> dict[str, Any]:
    """Medians over the measured steps: seconds, share and tokens a second of each phase; and the highest peaks."""
    steps = measured["steps"]

    def middle(key: str) -> float:
        return statistics.median(step[key] for step in steps)

    whole = statistics.median(sum(step[f"{phase}_seconds"] for phase in PHASES) for step in steps)
    tokens = middle("completion_tokens")
    read = {"rollout": tokens, **dict.fromkeys(("reward", "update"), tokens + middle("prompt_tokens"))}
    found: dict[str, Any] = {"step_seconds": whole, "completion_tokens": tokens}
    for phase in PHASES:
        seconds = middle(f"{phase}_seconds")
        found |= {
            f"{phase}_seconds": seconds,
            f"{phase}_share": seconds / whole,
            f"{phase}_tokens_a_second": read[phase] / seconds,
        }
        for kind in ("peak", "reserved"):
            if f"{phase}_{kind}_bytes" in steps[0]:
                found[f"{phase}_{kind}_gib"] = max(step[f"{phase}_{kind}_bytes"] for step in steps) / 2**30
    if measured["loaded_bytes"]:
        found["loaded_gib"] = measured["loaded_bytes"] / 2**30
    return found | {"peak_resident_gib": measured["peak_resident_bytes"] / 2**30}


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table, a side a row, with the profiles below it."""
    lines = [
        f"{result['device']}, cap {result['cap_gib'] or 'none'}, engine {result['engine']}",
        "| | seconds a step | rollout | reward | update | rollout tokens/s | completion tokens | peak GiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for side, found in result["sides"].items():
        peaks = [found[f"{phase}_peak_gib"] for phase in PHASES if f"{phase}_peak_gib" in found]
        shares = " | ".join(f"{found[f'{phase}_seconds']:.2f} ({found[f'{phase}_share']:.0%})" for phase in PHASES)
        lines.append(
            f"| {side} | {found['step_seconds']:.2f} | {shares} | {found['rollout_tokens_a_second']:,.0f} "
            f"| {found['completion_tokens']:,.0f} | {max(peaks, default=found['peak_resident_gib']):.2f} |"
        )
    if result["plan"]:
        lines += phase_peaks(result["sides"]["ours"], result["plan"])
        by = " by --probe" if result["planned_by_probe"] else ""
        lines.append(f"planned{by}: " + ", ".join(f"{key} {value:.2f}" for key, value in result["plan"].items()))
    if result["ours_over_trl"]:
        lines.append("ours / TRL: " + ", ".join(f"{k} {v:.2f}" for k, v in result["ours_over_trl"].items()))
    return "\n".join([*lines, *(f"\n{side}\n{profile}" for side, profile in result["profile"].items())])


def phase_peaks(found: dict[str, Any], planned: dict[str, float]) -> list[str]:
    """A line of peak memory by phase beside the plan's; none on a CPU."""
    peaks = [
        f"{phase} {found[f'{phase}_peak_gib']:.2f} ({planned[f'{phase}_gib']:.2f})"
        for phase in PHASES
        if f"{phase}_peak_gib" in found
    ]
    return [f"peak GiB (planned, with the CUDA context): {', '.join(peaks)}"] if peaks else []


if __name__ == "__main__":
    sys.exit(main())
