"""Base against tuned: `python -m grlo_lite.evaluate RUN|ADAPTER [--suite NAME] [--limit N] [--data-dir DIR]`.

Reads top to bottom: what is evaluated, which questions, the model, the answers of each arm, the verdicts, the result.
"""

import argparse
import hashlib
import json
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from grlo_lite import microcosm, rundir
from grlo_lite import subject as subjects
from grlo_lite.answer_store import AnswerStore, key
from grlo_lite.cli import INTERRUPTED, run_command, settle_libraries
from grlo_lite.errors import BadInput
from grlo_lite.generation import Answer, Sampling
from grlo_lite.results import Outcome, answer_rows, evaluation, table
from grlo_lite.subject import Subject
from grlo_lite.tasks import instructions, sources
from grlo_lite.tasks.question import Question, Task, Verdict

ARMS = ("base", "tuned", "base_plain")


def main(argv: list[str] | None = None) -> int:
    """Evaluates, and returns the exit code. Raises BadInput where the user has to change something."""
    arguments = _parsed(argv)
    subject = subjects.find(arguments.subject, arguments.base)
    suite = arguments.suite or ("microcosm" if subject.base == str(microcosm.POLICY) else "quick")
    print(f"suite {suite} on {subject.adapter}", flush=True)
    settle_libraries(offline=Path(subject.base).exists() and (bool(arguments.data_dir) or suite == "microcosm"))
    asked, missing = _questions(suite, arguments)
    policy = subjects.load(subject)
    store = AnswerStore(subject.run.answer_store)
    try:
        asking = Asking(policy, subject, store, arguments.seed, arguments.tokens_per_batch)
        answers = asking.everything(asked, ARMS if arguments.arm == "both" else _arms_of(arguments.arm))
        outcomes = _judged(asked, answers, policy, subject, arguments.judge, store)
    except KeyboardInterrupt:
        print("\ninterrupted; what was answered is kept, and the same command goes on from there")
        return INTERRUPTED
    finally:
        store.close()
    rundir.write_atomically(
        subject.run.answers, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in answer_rows(outcomes))
    )
    if arguments.arm != "both":
        for outcome in outcomes:
            said = ", ".join(f"{arm} {outcome.scores(arm).mean():.3f}" for arm in outcome.verdicts)
            print(f"{outcome.task.name}: {said or 'answered, and to be judged against the other arm'}")
        print("the answers are kept; --arm both compares the arms")
        return 0
    result = evaluation(suite, outcomes, missing, {"model": _model_facts(policy, subject), "seed": arguments.seed})
    rundir.write_json(subject.run.evaluation, result)
    print(f"\n{table(result)}\n\n{subject.run.evaluation}, and every answer with its verdict in {subject.run.answers}")
    return 0


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m grlo_lite.evaluate",
        allow_abbrev=False,
        description="Base against tuned on the same questions, from one loaded model, with error bars.",
    )
    parser.add_argument("subject", type=Path, metavar="RUN|ADAPTER", help="a run directory, or a PEFT adapter's folder")
    parser.add_argument("--suite", choices=sources.SUITES, help="default: the microcosm's for its model, else quick")
    parser.add_argument("--limit", type=int, help="questions a task, a random choice that is always the same")
    parser.add_argument("--samples", type=int, help="answers a question in the tasks that are sampled (avg@K)")
    parser.add_argument("--max-tokens", type=int, help="a lower limit on the length of answers than the tasks' own")
    parser.add_argument(
        "--data-dir", type=Path, help="read all questions from the files in this folder, none from a hub"
    )
    parser.add_argument("--strict", action="store_true", help="stop where a task's questions are missing")
    parser.add_argument("--arm", choices=("base", "tuned", "both"), default="both", help="answer with one arm only")
    parser.add_argument("--base", help="the base model, where it is not where the adapter says")
    parser.add_argument("--judge", help="a reward model, or URL#MODEL of an OpenAI-compatible endpoint")
    parser.add_argument("--allow-code-execution", action="store_true", help="run the model's code, in the sandbox")
    parser.add_argument("--tokens-per-batch", type=int, help="default: what the GPU's free memory holds")
    parser.add_argument("--seed", type=int, default=0, help="of the sampled answers")
    arguments = parser.parse_args(argv)
    for name, least in (("limit", 2), ("samples", 1), ("max_tokens", 1), ("tokens_per_batch", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise BadInput(f"--{name.replace('_', '-')}={value} is too small; it must be at least {least}")
    if arguments.data_dir is not None and not arguments.data_dir.is_dir():
        raise BadInput(f"--data-dir={arguments.data_dir} is no folder; docs/evaluation.md lists the files it may hold")
    return arguments


def _arms_of(arm: str) -> tuple[str, ...]:
    return ("tuned",) if arm == "tuned" else ("base", "base_plain")


def _questions(suite: str, arguments: argparse.Namespace) -> tuple[list[tuple[Task, list[Question]]], list[str]]:
    """The suite's tasks with their questions, as the command line changes them, and what had to be left out and why.

    Raises BadInput where nothing is left, or where something is missing under --strict.
    """
    asked, missing = [], []
    for task in sources.SUITES[suite]:
        try:
            if why := _hindrance(task, arguments.allow_code_execution):
                raise sources.Missing(f"{task.name}: {why}")
            asked.append((_adjusted(task, arguments), sources.questions(task, arguments.data_dir, arguments.limit)))
        except sources.Missing as absent:
            missing.append(str(absent))
    for said in missing:
        print(f"left out: {said}", flush=True)
    if not asked or (missing and arguments.strict):
        more = f"; and {len(missing) - 1} more, listed above" if len(missing) > 1 else ""
        raise BadInput(f"{'not all' if asked else 'nothing'} of suite {suite} can be asked: {missing[0]}{more}")
    return asked, missing


def _hindrance(task: Task, code_allowed: bool) -> str:
    from grlo_lite import sandbox

    if task is instructions.IFEVAL:
        return instructions.unavailable()
    if task.domain == "mathematics":
        try:
            import math_verify  # noqa: F401
        except ImportError:
            return "its scoring needs math_verify; pip install 'grlo-lite[eval]'"
    if task.runs_code and not code_allowed:
        return "it runs code that the model wrote; allow that, in the sandbox, with --allow-code-execution"
    return sandbox.unavailable() if task.runs_code else ""


def _adjusted(task: Task, arguments: argparse.Namespace) -> Task:
    max_tokens = min(task.max_tokens, arguments.max_tokens or task.max_tokens)
    samples = arguments.samples if arguments.samples and task.temperature else task.samples
    return replace(task, max_tokens=max_tokens, samples=samples)


def _model_facts(policy: Any, subject: Subject) -> dict[str, Any]:
    """What an answer depends on beside its question: model, adapter, template, precision."""
    from grlo_lite.policy import TEMPLATE_OPTIONS

    return {
        "base": "microcosm" if subject.base == str(microcosm.POLICY) else subject.base,
        "commit": getattr(policy.model.config, "_commit_hash", None) or _local_weights(Path(subject.base)),
        "adapter_sha256": rundir.file_sha256(subject.adapter / "adapter_model.safetensors"),
        "template_sha256": subjects.template_sha256(policy.tokenizer),
        "template_options": TEMPLATE_OPTIONS,
        "dtype": f"{subject.quantization}, {policy.model.dtype}".replace("torch.", ""),
    }


def _local_weights(folder: Path) -> str:
    """A hash that changes with a local model's weights: of the bytes where they are few, else of sizes and times."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        small = file.stat().st_size < 2**28
        digest.update(file.read_bytes() if small else f"{file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


class Asking:
    """Puts questions to the arms of one loaded model, and to the store first."""

    def __init__(self, policy: Any, subject: Subject, store: AnswerStore, seed: int, tokens_per_batch: int | None):
        from grlo_lite.generation import tokens_at_once

        self.policy = policy
        self.store = store
        self.seed = seed
        self.budget = tokens_per_batch or tokens_at_once(policy.model)
        self.facts = _model_facts(policy, subject)

    def everything(
        self, asked: list[tuple[Task, list[Question]]], arms: tuple[str, ...]
    ) -> list[dict[str, list[list[Answer]]]]:
        """For each task, each arm's answers, a list of K samples a question."""
        from tqdm import tqdm

        work = [(task, questions, arm) for task, questions in asked for arm in _arms_asked(task, arms)]
        said: list[dict[str, list[list[Answer]]]] = [{} for _ in asked]
        with tqdm(total=sum(len(q) * t.samples for t, q, _ in work), unit="answer", desc="answers") as bar:
            for (task, questions), found in zip(asked, said, strict=True):
                for arm in _arms_asked(task, arms):
                    bar.set_postfix_str(f"{task.name}, {arm}")
                    with self.policy.model.disable_adapter() if arm != "tuned" else nullcontext():
                        found[arm] = self._of_arm(task, questions, arm, bar)
        return said

    def _of_arm(self, task: Task, questions: list[Question], arm: str, bar: Any) -> list[list[Answer]]:
        """One arm's answers, from the store or asked for now, in batches that do not depend on what is kept already.

        So a killed evaluation, whose last batch is kept whole or not at all, goes on with the very batches and
        random draws that it would have had.
        """
        from grlo_lite.policy import formatted

        plain = arm == "base_plain"
        tokenizer = self.policy.tokenizer
        texts = [q.plain if plain else formatted(tokenizer, [{"role": "user", "content": q.prompt}]) for q in questions]
        lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        sampling = Sampling(task.max_tokens, task.temperature, task.top_p, task.stops if plain else ())
        rows = [(i, k) for i in sorted(range(len(texts)), key=lambda i: lengths[i]) for k in range(task.samples)]
        keys = {row: self._key(task, questions[row[0]], arm, texts[row[0]], sampling, row[1]) for row in rows}
        known = self.store.known(keys.values())
        bar.update(sum(k in known for k in keys.values()))
        for number, batch in enumerate(_batches(rows, lengths, task.max_tokens, self.budget)):
            missing = [row for row in batch if keys[row] not in known]
            if missing:
                said = self._batch([texts[i] for i, _ in missing], sampling, f"{self.seed} {task.name} {number}")
                entries = {keys[row]: asdict(answer) for row, answer in zip(missing, said, strict=True)}
                self.store.keep(entries)
                known |= entries
                bar.update(len(missing))
        return [[Answer(**known[keys[i, k]]) for k in range(task.samples)] for i in range(len(questions))]

    def _batch(self, texts: list[str], sampling: Sampling, seed: str) -> list[Answer]:
        import torch

        from grlo_lite.generation import answers, seeded

        try:
            with seeded(self.policy.model, int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")):
                return answers(self.policy.model, self.policy.tokenizer, texts, sampling)
        except torch.OutOfMemoryError:
            raise BadInput(
                f"the GPU's memory does not hold --tokens-per-batch={self.budget}; what was answered is kept: "
                f"go on with --tokens-per-batch {self.budget // 2}"
            ) from None

    def _key(self, task: Task, question: Question, arm: str, text: str, sampling: Sampling, sample: int) -> str:
        facts = self.facts if arm == "tuned" else self.facts | {"adapter_sha256": None}
        drawn = {"seed": self.seed, "sample": sample} if sampling.temperature else {}
        settings = asdict(sampling) | drawn
        return key(arm=arm, **facts, task=task.name, version=task.version, question=question.id, text=text, **settings)


def _arms_asked(task: Task, arms: tuple[str, ...]) -> tuple[str, ...]:
    """The plain arm has no part where a judge compares two answers."""
    return arms if task.judged else tuple(arm for arm in arms if arm != "base_plain")


def _batches(
    rows: list[tuple[int, int]], lengths: list[int], max_tokens: int, budget: int
) -> list[list[tuple[int, int]]]:
    """Rows, sorted by their prompt's length, in batches of at most `budget` padded tokens, room for the answer
    included; a row that alone is longer goes alone.
    """
    batches: list[list[tuple[int, int]]] = []
    for row in rows:
        if batches and (len(batches[-1]) + 1) * (lengths[row[0]] + max_tokens) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _judged(
    asked: list[tuple[Task, list[Question]]],
    answers: list[dict[str, list[list[Answer]]]],
    policy: Any,
    subject: Subject,
    judge: str | None,
    store: AnswerStore,
) -> list[Outcome]:
    """Each task's verdicts: by its scorer, or, where it has none and both arms answered, by the judge."""
    outcomes = []
    for (task, questions), said in zip(asked, answers, strict=True):
        digest = sources.questions_sha256(questions)
        if task.judged is not None:
            print(f"judging {task.name}", flush=True)
            verdicts = {
                arm: [[task.judged(q, a.text) for a in samples] for q, samples in zip(questions, by_arm, strict=True)]
                for arm, by_arm in said.items()
            }
            outcomes.append(Outcome(task, questions, digest, said, verdicts))
        elif {"base", "tuned"} <= set(said):
            name = judge or _default_judge(subject)
            print(f"judging {task.name} with {name}", flush=True)
            verdicts, comparison = _compared(questions, said, name, policy, subject, store)
            outcomes.append(Outcome(task, questions, digest, said, verdicts, comparison))
        else:
            outcomes.append(Outcome(task, questions, digest, {}, {}))
    return outcomes


def _default_judge(subject: Subject) -> str:
    """A reward model of another family than the one that the adapter was trained by."""
    if subject.base == str(microcosm.POLICY):
        return "microcosm-heldout"
    llama = "llama" in (subject.trained_by or "").lower()
    return f"Skywork/Skywork-Reward-V2-{'Qwen3-4B' if llama else 'Llama-3.2-3B'}"


def _compared(
    questions: list[Question], said: dict[str, list[list[Answer]]], name: str, policy: Any, subject: Subject, store: Any
) -> tuple[dict[str, list[list[Verdict]]], dict[str, Any]]:
    """The judge's preferences as verdicts of both arms, and its part of evaluation.json."""
    from grlo_lite import judge

    texts = {arm: [samples[0].text for samples in said[arm]] for arm in ("base", "tuned")}
    triples = list(zip([q.prompt for q in questions], texts["base"], texts["tuned"], strict=True))
    keys = [key(judge=name, prompt=p, base=b, tuned=t) for p, b, t in triples]
    known = store.known(keys)
    missing = [i for i, k in enumerate(keys) if k not in known]
    if missing:
        prefer = _endpoint(name) if "://" in name else _reward_judge(name, policy.model.device)
        for start in range(0, len(missing), 32):
            batch = missing[start : start + 32]
            found = prefer(*(list(column) for column in zip(*(triples[i] for i in batch), strict=True)))
            entries = {keys[i]: asdict(p) for i, p in zip(batch, found, strict=True)}
            store.keep({k: v for k, v in entries.items() if k not in known})
            known |= entries
    preferences = [judge.Preference(**known[k]) for k in keys]
    verdicts = {
        "base": [[Verdict(1 - p.win, "", p.why)] for p in preferences],
        "tuned": [[Verdict(p.win, "", p.why)] for p in preferences],
    }
    about = {"name": name, "relation": _relation(name, subject)}
    return verdicts, about | judge.comparison(preferences, texts["base"], texts["tuned"])


def _endpoint(name: str) -> Any:
    from grlo_lite import judge

    url, hash_sign, model = name.partition("#")
    if not hash_sign or not model:
        raise BadInput(
            f"--judge={name} names no model; write it behind the address, as in http://localhost:8000/v1#NAME"
        )
    return lambda prompts, base, tuned: judge.by_endpoint(url, model, prompts, base, tuned)


def _reward_judge(name: str, device: Any) -> Any:
    from grlo_lite import judge, reward

    path = {"microcosm": str(microcosm.REWARD), "microcosm-heldout": str(microcosm.HELDOUT)}.get(name, name)
    model = reward.load(path, "main", "nf4", device, 4096, "auto")
    return lambda prompts, base, tuned: judge.by_reward(model.score, prompts, base, tuned)


def _relation(name: str, subject: Subject) -> str:
    """How independent the judge is of the reward model that the adapter was trained by."""
    if subject.trained_by is None:
        return "what the adapter was trained by is not known"
    if name == subject.trained_by:
        return "which the adapter was trained by: it shows that training worked, not that the answers are better"
    return f"the adapter was trained by {subject.trained_by}"


if __name__ == "__main__":
    sys.exit(run_command(main))
