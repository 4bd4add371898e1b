"""Our scorer beside TRL's own reward-model path: `python benchmarks/reward.py [--shape microcosm|middle]`.

The same random reward model, in fp32, scores the same completions, of log-normal lengths (median 300 tokens, 95th
percentile 1,500). TRL's side is its trainer's `_calculate_rewards`. Every measurement has a process of its own, for its
peak memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "microcosm": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4},
    "middle": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8},
}
MEDIAN, PERCENTILE_95, LONGEST = 300, 1500, 4000
SEED = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, action="append")
    parser.add_argument("--completions", type=int, default=64)
    parser.add_argument("--flat", type=int, nargs="*", default=[64, 256, 1024], help="batch sizes for the memory check")
    parser.add_argument("--side", choices=("ours", "trl"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measured(arguments.side, arguments.shape[0], arguments.completions)))
        return 0
    for shape in arguments.shape or SHAPES:
        ours, trl = (in_a_process(side, shape, arguments.completions) for side in ("ours", "trl"))
        print(f"\n{shape}: {arguments.completions} completions, {ours['tokens']:,} tokens")
        print("| | seconds | padded tokens | waste | peak memory over the model |\n| --- | --- | --- | --- | --- |")
        for name, side in (("TRL", trl), ("ours", ours)):
            waste = 1 - ours["tokens"] / side["padded"]
            print(
                f"| {name} | {side['seconds']:.1f} | {side['padded']:,} | {waste:.0%} | {side['peak_mib']:,.0f} MiB |"
            )
        difference = max(abs(a - b) for a, b in zip(ours["scores"], trl["scores"], strict=True))
        print(
            f"TRL / ours: {trl['seconds'] / ours['seconds']:.1f} × the time, "
            f"{trl['peak_mib'] / ours['peak_mib']:.1f} × the memory; largest absolute score difference {difference:.1e}"
        )
    for count in arguments.flat:
        side = in_a_process("ours", "microcosm", count)
        print(f"ours, microcosm shape, {count} completions: peak {side['peak_mib']:,.0f} MiB, {side['seconds']:.1f} s")
    return 0


def in_a_process(side: str, shape: str, completions: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--side", side, "--shape", shape, "--completions", str(completions)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measured(side: str, shape: str, count: int) -> dict[str, Any]:
    """Seconds, padded tokens, peak memory beyond what the loaded model had, and the scores, of one side."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification

    from grlo_lite.models import names, reward_model

    tokenizer = AutoTokenizer.from_pretrained(names.REWARD)
    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        head_dim=32,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=8192,
        **SHAPES[shape],
    )
    config.num_labels = 1
    model = Qwen3ForSequenceClassification(config).eval()
    conversations = drawn(tokenizer, count)
    budget = reward_model.tokens_that_fit(model, "cpu")
    scorer = reward_model.RewardModel(model, tokenizer, max_tokens=8192, tokens_per_batch=budget)
    lengths = sorted(len(scorer.token_ids(c)) for c in conversations)
    scorer.score(conversations[:1])  # what is allocated once is not counted
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    if side == "ours":
        scores = scorer.score(conversations)
        batches = reward_model.batches_under_budget([[0] * n for n in lengths], len, scorer.tokens_per_batch)
        padded = sum(len(batch) * len(batch[-1]) for batch in batches)
    else:
        calculate = trl_rewards(model, tokenizer)
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        scores = calculate(conversations)
        padded = count * lengths[-1]
    seconds = time.monotonic() - began
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": seconds, "padded": padded, "tokens": sum(lengths), "peak_mib": max(peak, 1), "scores": scores}


def drawn(tokenizer: Any, count: int) -> list[list[dict[str, str]]]:
    """`count` conversations of ramblings whose lengths in tokens are log-normal."""
    import random

    import numpy as np

    from grlo_lite.microcosm import world

    draws = np.random.default_rng(SEED).lognormal(np.log(MEDIAN), np.log(PERCENTILE_95 / MEDIAN) / 1.645, count)
    rng = random.Random(SEED)
    prompts = world.chat_prompts(held_out=False)
    asked = []
    for length in np.clip(draws, 5, LONGEST).astype(int):
        ids = tokenizer(world.ramble(rng, int(length)))["input_ids"][:length]
        prompt, answer = rng.choice(prompts), tokenizer.decode(ids)
        asked.append([{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])
    return asked


def trl_rewards(model: Any, tokenizer: Any) -> Any:
    """TRL's way from conversations to scores: its GRPO trainer, built around the same reward model."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    from grlo_lite.models import names

    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(names.POLICY),
            reward_funcs=model,
            reward_processing_classes=tokenizer,
            args=GRPOConfig(folder, use_cpu=True, bf16=False, per_device_train_batch_size=8, report_to="none"),
            train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": "?"}]] * 8}),
            processing_class=tokenizer,
        )

    def calculate(conversations: list[list[dict[str, str]]]) -> list[float]:
        asked, said = [c[:-1] for c in conversations], [c[-1:] for c in conversations]
        inputs = [{"prompt": prompt} for prompt in asked]
        return trainer._calculate_rewards(inputs, asked, said, [[0]] * len(said))[:, 0].tolist()

    return calculate


if __name__ == "__main__":
    sys.exit(main())
