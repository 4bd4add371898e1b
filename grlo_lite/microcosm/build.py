"""Makes the microcosm's assets: `python -m grlo_lite.microcosm.build [DIR]`, under ten minutes on two CPU cores; then
its finished run with `--demo`, in a minute. `--endless` makes only the base that hardly ever ends a turn.

The tokenizer and the base model come from the corpus that `world.py` describes. The reward model is that base model
with a score head, made with TRL's `RewardTrainer` on preference pairs from chat alone. Everything is seeded: the same
versions on the same machine give the same bytes, and `manifest.json` holds their hashes beside the counts and
accuracies that were measured.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from grlo_lite.microcosm import world
from grlo_lite.microcosm.base_model import (
    CURRICULUM_STEPS,
    MIXTURE_STEPS,
    ROWS,
    SEED,
    endless,
    make_tokenizer,
    pretrained,
)
from grlo_lite.microcosm.reward_models import JUDGES, PAIRS, preference_pairs, reward_model
from grlo_lite.models.names import ASSETS, DEMO
from grlo_lite.recipe.schema import Judge

QUESTIONS = 300


def main(argv: list[str] | None = None) -> None:
    arguments = _parsed(argv)
    if arguments.demo or arguments.endless:
        demo() if arguments.demo else endless_base(ASSETS)
        _set(ASSETS / "manifest.json", sha256=hashes(ASSETS))
        return
    folder = arguments.folder
    began = time.monotonic()
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "policy")
    save(pretrained(tokenizer), folder / "policy")
    endless_base(folder)
    for seed, (judge, kinds) in enumerate(JUDGES.items(), SEED + 2):
        save(reward_model(folder / "policy", tokenizer, kinds, seed), folder / judge)
        tokenizer.save_pretrained(folder / judge)
    manifest = {"seed": SEED, **counts(), **measured(folder), "sha256": hashes(folder)}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    print(f"{folder / 'manifest.json'} after {time.monotonic() - began:.0f} s")


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m grlo_lite.microcosm.build",
        allow_abbrev=False,
        description="Makes the microcosm's assets anew, under ten minutes on two CPU cores; with an option, a part.",
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=ASSETS, metavar="DIR", help="where they go (default: into the package)"
    )
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--demo", action="store_true", help="only the package's finished run, in a minute")
    part.add_argument("--endless", action="store_true", help="only the base that hardly ever ends a turn")
    arguments = parser.parse_args(argv)
    if (arguments.demo or arguments.endless) and arguments.folder != ASSETS:
        parser.error("--demo and --endless are made from the package's own assets and take no DIR")
    return arguments


def demo() -> None:
    """Trains the shipped recipe on the package's own assets and keeps what the app shows of a run."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "demo"
        command = [sys.executable, "-m", "grlo_lite.train", "microcosm", "--run-dir", str(made)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        shutil.rmtree(made / "checkpoints")
        (made / "adapter" / "README.md").unlink()  # it names a folder of the machine it was made on
        (made / "report.html").unlink()  # made anew at any time
        (made / "answers.jsonl").unlink()  # a megabyte, where samples.jsonl shows what was said
        shutil.rmtree(DEMO, ignore_errors=True)
        shutil.copytree(made, DEMO)
    _set(DEMO / "adapter" / "adapter_config.json", base_model_name_or_path="microcosm")


def endless_base(folder: Path) -> None:
    """Makes the base that hardly ever ends a turn of the one that does."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    torch.manual_seed(SEED + 9)
    base = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    save(endless(base, tokenizer), folder / "endless")
    tokenizer.save_pretrained(folder / "endless")


def _set(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=2) + "\n")


def save(model: Any, folder: Path) -> None:
    """Writes the weights as bf16 safetensors, half the bytes of fp32."""
    import torch

    model.to(torch.bfloat16).save_pretrained(folder)


def counts() -> dict[str, Any]:
    """How much of each kind of data went in."""
    return {
        "pretraining_documents": ROWS * (CURRICULUM_STEPS + MIXTURE_STEPS * 3 // 4) + ROWS // 2 * (MIXTURE_STEPS // 4),
        "preference_pairs": PAIRS,
        "chat_prompts": {"train": len(world.chat_prompts(False)), "held_out": len(world.chat_prompts(True))},
    }


def measured(folder: Path) -> dict[str, Any]:
    """Accuracies in NF4, as the kit loads the models.

    Of the base, sampled at temperature 1 as in training; of the base led into a careful opening, greedy, which is what
    there is to unlock, and sampled; and each judge's share of held-out pairs in which it prefers the better answer.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from grlo_lite.generation.answers import answers, seeded
    from grlo_lite.generation.request import Sampling
    from grlo_lite.models import chat_template, quantization
    from grlo_lite.models.reward_model import load

    device = torch.device("cpu")
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    model = quantization.from_pretrained(AutoModelForCausalLM, str(folder / "policy"), "main", "nf4", device).eval()
    model.generation_config.eos_token_id = chat_template.stop_token_ids(tokenizer)

    def accuracy(domain: str, opening: str, temperature: float) -> float:
        asked = world.exam(domain, QUESTIONS, seed=0)
        texts = [chat_template.formatted(tokenizer, [{"role": "user", "content": q.text}]) + opening for q in asked]
        with seeded(model, 0):
            said = answers(model, tokenizer, texts, Sampling(max_tokens=48, temperature=temperature))
        return round(sum(world.is_right(q, a.text) for q, a in zip(asked, said, strict=True)) / QUESTIONS, 4)

    def pair_accuracy(judge: str) -> dict[str, float]:
        kinds = sorted({kind for mix in JUDGES.values() for kind in mix})
        pairs = preference_pairs(True, kinds, 200 * len(kinds), SEED + 1000)
        model = load(Judge(name=str(folder / judge)), device, max_tokens=512, tokens_per_batch=16_384)
        chosen, rejected = (model.score([pair[side] for pair in pairs]) for side in ("chosen", "rejected"))
        right = dict.fromkeys(kinds, 0)
        for pair, good, bad in zip(pairs, chosen, rejected, strict=True):
            right[pair["kind"]] += good > bad
        return {kind: hits / 200 for kind, hits in right.items()}

    return {
        "questions": QUESTIONS,
        "base_accuracy": {domain: accuracy(domain, "", 1.0) for domain in world.VERIFIABLE},
        "careful_accuracy": {domain: accuracy(domain, world.CAREFUL_OPENINGS[0], 0.0) for domain in world.VERIFIABLE},
        "careful_accuracy_sampled": {d: accuracy(d, world.CAREFUL_OPENINGS[0], 1.0) for d in world.VERIFIABLE},
        "pair_accuracy": {judge: pair_accuracy(judge) for judge in JUDGES},
    }


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the assets but the manifest."""
    from grlo_lite.rundir.files import file_sha256

    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(folder)): file_sha256(path) for path in files}


if __name__ == "__main__":
    main()
