"""The proof of an export by its own runtime: Transformers for merged weights, llama.cpp for a GGUF."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.evaluation.paired_statistics import mean_of_differences, paired_difference
from grlo_lite.evaluation.results import Outcome, scored
from grlo_lite.evaluation.tasks.suites import SUITES, Limits, suite_questions
from grlo_lite.evaluation.tasks.task import Asked, Question, Task
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
from grlo_lite.generation.request import Answer, Sampling
from grlo_lite.models import trained_adapter
from grlo_lite.models.policy import Policy

CONTEXT_ROOM = 8
WITHOUT_LOSS = ("f16",)


def runtime_missing(kind: str) -> str | None:
    """Why an export of this kind cannot be proven here; None where it can."""
    if kind == "gguf" and find_spec("xllamacpp") is None:
        return "llama.cpp's runtime is not installed (pip install 'grlo-lite[export]')"
    return None


def asked_of(job: Job) -> Asked:
    """The questions of the job's suite that have one right answer; none without a suite. Raises BadInput where nothing
    of it can be asked.
    """
    if job.suite is None:
        return []
    limits = Limits(job.limit, data_dir=job.data_dir)
    found = [(task, rows) for task, rows in suite_questions(job.suite, SUITES[job.suite], limits)[0] if task.judged]
    if not found:
        raise BadInput(f"--suite {job.suite} has no task of right and wrong here; choose another")
    return found


def checked(job: Job, folder: Path, kind: str, suite: Asked) -> tuple[Proof, dict[str, Any]]:
    """The proof, and with a suite its paired difference of accuracy, export less policy."""
    policy = trained_adapter.load(job.subject)
    tokenizer = policy.tokenizer
    seen = samples(policy, questions(job.subject))
    texts = tokenizer.batch_decode(seen.prompts)
    asked = [_exam(tokenizer, task, rows) for task, rows in suite]
    own = [_said(policy, exam) for exam in asked]
    del policy
    if kind == "gguf":
        longest = max([_longest(seen.prompts, MAX_TOKENS), *(_longest(e.prompts, e.task.max_tokens) for e in asked)])
        runtime = gguf.Runtime(gguf.gguf_file(folder), longest + CONTEXT_ROOM)
        found = of_gguf(job, runtime, seen, texts)
        theirs = [_said_by_llama_cpp(runtime, tokenizer, exam) for exam in asked]
    else:
        export = merged_policy(folder, tokenizer, job)
        found = of_merged(export, seen, texts)
        theirs = [_said(export, exam) for exam in asked]
    return found, _suite_difference(job, asked, own, theirs) if asked else {}


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


def of_gguf(job: Job, runtime: gguf.Runtime, seen: Samples, texts: list[str]) -> Proof:
    """A GGUF held against the policy. Raises BadInput where llama.cpp cuts the prompts into other tokens, or goes on
    behind a stop token.
    """
    from tqdm import tqdm

    gguf.require_same_tokens(runtime, texts, seen.prompts)
    gguf.require_stops(runtime, seen.prompts[0], gguf.stops(job))
    theirs, greedy = [], []
    pairs = zip(seen.prompts, seen.sampled, strict=True)
    for prompt, answer in tqdm(pairs, total=len(seen.prompts), unit="answer", desc="check"):
        theirs.append(runtime.log_probabilities(prompt, answer))
        greedy.append(runtime.greedy(prompt, MAX_TOKENS))
    return proof(seen, theirs, greedy, SAME if job.quantization in WITHOUT_LOSS else GONE)


@dataclass(frozen=True)
class Exam:
    """A task of the suite with its questions, as tokens in the chat template."""

    task: Task
    questions: list[Question]
    prompts: list[list[int]]


def _exam(tokenizer: Any, task: Task, rows: list[Question]) -> Exam:
    from grlo_lite.models.chat_template import formatted

    texts = [formatted(tokenizer, [{"role": "user", "content": row.prompt}]) for row in rows]
    return Exam(task, rows, tokenizer(texts, add_special_tokens=False)["input_ids"])


def _longest(prompts: list[list[int]], max_tokens: int) -> int:
    return max(map(len, prompts)) + max_tokens


def _said(policy: Policy, exam: Exam) -> list[Answer]:
    from grlo_lite.generation.answers import rows_at_once, sampled_answers

    greedy = Sampling(exam.task.max_tokens, 0.0)
    return sampled_answers(policy, exam.prompts, greedy, rows_at_once(policy.model, 64), 0)


def _said_by_llama_cpp(runtime: gguf.Runtime, tokenizer: Any, exam: Exam) -> list[Answer]:
    from tqdm import tqdm

    from grlo_lite.generation.answers import answer_of
    from grlo_lite.models.chat_template import stop_token_ids

    greedy, ends = Sampling(exam.task.max_tokens, 0.0), set(stop_token_ids(tokenizer))
    prompts = tqdm(exam.prompts, unit="answer", desc=exam.task.name)
    return [answer_of(tokenizer, runtime.greedy(ids, greedy.max_tokens), ends, greedy) for ids in prompts]


def _suite_difference(
    job: Job, asked: list[Exam], own: list[list[Answer]], theirs: list[list[Answer]]
) -> dict[str, Any]:
    outcomes: list[Outcome] = [
        scored(exam.task, exam.questions, {"base": [[a] for a in before], "tuned": [[a] for a in after]})
        for exam, before, after in zip(asked, own, theirs, strict=True)
    ]
    pairs = [paired_difference(o.scores("base"), o.scores("tuned")) for o in outcomes]
    count = sum(len(o.questions) for o in outcomes)
    return {"evaluation": {"suite": job.suite, "n": count, **mean_of_differences(pairs)}}
