"""The proof of an export by its own runtime: Transformers for merged weights, llama.cpp for a GGUF."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from grlo_lite.evaluation.paired_statistics import mean_of_differences, paired_difference
from grlo_lite.evaluation.results import Outcome, scored
from grlo_lite.evaluation.tasks.suites import SUITES, Limits, suite_questions
from grlo_lite.exporting import gguf
from grlo_lite.exporting.job import Job
from grlo_lite.exporting.proof import (
    GONE,
    MAX_TOKENS,
    SAME,
    Proof,
    Samples,
    log_probabilities,
    proof,
    questions,
    samples,
)
from grlo_lite.generation.request import Sampling
from grlo_lite.models import trained_adapter
from grlo_lite.models.policy import Policy

CONTEXT_ROOM = 8
WITHOUT_LOSS = ("f16",)


def runtime_missing(kind: str) -> str | None:
    """Why an export of this kind cannot be proven here; None where it can."""
    if kind == "gguf" and find_spec("xllamacpp") is None:
        return "llama.cpp's runtime is not installed (pip install 'grlo-lite[export]')"
    return None


def checked(job: Job, folder: Path, kind: str) -> tuple[Proof, dict[str, Any]]:
    """The proof, and with a suite its paired difference of accuracy, export less policy."""
    policy = trained_adapter.load(job.subject)
    seen = samples(policy, questions(job.subject))
    texts = policy.tokenizer.batch_decode(seen.prompts)
    asked, own = _answered(job, policy) if job.suite and kind == "merged" else ([], [])
    tokenizer = policy.tokenizer
    del policy
    if kind == "gguf":
        return of_gguf(job, folder, seen, texts), {}
    export = merged_policy(folder, tokenizer, job)
    found = of_merged(export, seen, texts)
    return found, _suite_difference(job, asked, own, export) if asked else {}


def merged_policy(folder: Path, tokenizer: Any, job: Job) -> Policy:
    """The folder as anybody loads it, in the dtype that the policy computes in here."""
    from transformers import AutoModelForCausalLM

    from grlo_lite.machine.device import float_dtype, settle_threads, this_device

    device = this_device()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=float_dtype(device, job.subject.cpu_dtype))
    model = model.to(device).eval()
    settle_threads(model)
    return Policy(model, tokenizer, "transformers")


def of_merged(export: Policy, seen: Samples, texts: list[str]) -> Proof:
    """Merged weights held against the policy."""
    from grlo_lite.generation.answers import completion_ids

    theirs = log_probabilities(export.model, seen.prompts, seen.sampled)
    greedy = completion_ids(export.model, export.tokenizer, texts, Sampling(MAX_TOKENS, 0.0))
    return proof(seen, theirs, greedy, SAME)


def of_gguf(job: Job, folder: Path, seen: Samples, texts: list[str]) -> Proof:
    """Raises BadInput where llama.cpp cuts the prompts into other tokens."""
    from tqdm import tqdm

    context = max(map(len, seen.prompts)) + MAX_TOKENS + CONTEXT_ROOM
    runtime = gguf.Runtime(gguf.gguf_file(folder), context)
    gguf.require_same_tokens(runtime, texts, seen.prompts)
    theirs, greedy = [], []
    pairs = zip(seen.prompts, seen.sampled, strict=True)
    for prompt, answer in tqdm(pairs, total=len(seen.prompts), unit="answer", desc="check"):
        theirs.append(runtime.log_probabilities(prompt, answer))
        greedy.append(runtime.greedy(prompt, MAX_TOKENS))
    return proof(seen, theirs, greedy, SAME if job.quantization in WITHOUT_LOSS else GONE)


def _answered(job: Job, policy: Policy) -> tuple[list[Any], list[Any]]:
    limits = Limits(job.limit)
    asked, _ = suite_questions(str(job.suite), SUITES[str(job.suite)], limits)
    asked = [(task, found) for task, found in asked if task.judged]
    return asked, [_said(policy, task, found) for task, found in asked]


def _said(policy: Policy, task: Any, found: list[Any]) -> list[Any]:
    from grlo_lite.generation.answers import rows_at_once, sampled_answers
    from grlo_lite.models.chat_template import formatted

    texts = [formatted(policy.tokenizer, [{"role": "user", "content": question.prompt}]) for question in found]
    answers = sampled_answers(policy, texts, Sampling(task.max_tokens, 0.0), rows_at_once(policy.model, 64), 0)
    return [[answer] for answer in answers]


def _suite_difference(job: Job, asked: list[Any], own: list[Any], export: Policy) -> dict[str, Any]:
    outcomes: list[Outcome] = [
        scored(task, found, {"base": before, "tuned": _said(export, task, found)})
        for (task, found), before in zip(asked, own, strict=True)
    ]
    pairs = [paired_difference(o.scores("base"), o.scores("tuned")) for o in outcomes]
    count = sum(len(o.questions) for o in outcomes)
    return {"evaluation": {"suite": job.suite, "n": count, **mean_of_differences(pairs)}}
