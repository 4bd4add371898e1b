"""Each arm's answers to the questions of a suite, from the store first."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.evaluation.answer_store import AnswerStore, key
from grlo_lite.evaluation.tasks.task import Asked, Question, Said, Task
from grlo_lite.generation.request import Answer, Sampling
from grlo_lite.models import names, trained_adapter
from grlo_lite.models.scoring_budget import batches_under_budget
from grlo_lite.models.trained_adapter import Subject
from grlo_lite.rundir import files


def model_facts(policy: Any, subject: Subject) -> dict[str, Any]:
    """What an answer depends on beside its question: model, adapter, template, precision."""
    from grlo_lite.models.chat_template import TEMPLATE_OPTIONS

    return {
        "base": names.name_of(subject.base),
        "commit": getattr(policy.model.config, "_commit_hash", None) or _local_weights(Path(subject.base)),
        "adapter_sha256": files.file_sha256(subject.adapter / "adapter_model.safetensors"),
        "template_sha256": trained_adapter.template_sha256(policy.tokenizer),
        "template_options": TEMPLATE_OPTIONS,
        "dtype": f"{subject.quantization}, {policy.model.dtype}".replace("torch.", ""),
        **({"stages": {s.arm: s.adapter_sha256 for s in subject.stages}} if subject.stages else {}),
        **({"others": {s.arm: s.adapter_sha256 for s in subject.others}} if subject.others else {}),
    }


def engine_facts(engine: str) -> dict[str, str]:
    """What an answer depends on where another engine than the kit's own gives it: its rounding and its draws."""
    return {} if engine == "kit" else {"engine": engine}


def _local_weights(folder: Path) -> str:
    """A hash that changes with a local model's weights: of the bytes where they are few, else of sizes and times."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        small = file.stat().st_size < 2**28
        digest.update(file.read_bytes() if small else f"{file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


class Asking:
    """Puts questions to the arms of one loaded model by an engine of engine_table.ANSWERING, and to the store first."""

    def __init__(
        self, policy: Any, subject: Subject, store: AnswerStore, seed: int, tokens_per_batch: int | None, engine: str
    ):
        from grlo_lite.generation.answers import tokens_at_once
        from grlo_lite.generation.decoders import kits

        self.policy = policy
        self.engine, self.decoding = engine, kits
        self.store = store
        self.seed = seed
        self.budget = tokens_per_batch or tokens_at_once(policy.model)
        self.facts = {
            key: fact for key, fact in model_facts(policy, subject).items() if key not in ("stages", "others")
        } | engine_facts(engine)
        self.adapters = {"tuned": self.facts["adapter_sha256"]} | {
            s.arm: s.adapter_sha256 for s in (*subject.stages, *subject.others)
        }

    @contextmanager
    def engine_running(self) -> Iterator[None]:
        """Inside, the engine answers; it holds nothing before it is first asked, and nothing afterwards."""
        from grlo_lite.generation import decoders

        with decoders.decoding(self.engine, self.policy.model, self.budget) as self.decoding:
            yield
        self.decoding = decoders.kits

    def everything(self, asked: Asked, arms: tuple[str, ...]) -> list[Said]:
        """For each task, each arm's answers, a list of K samples a question."""
        from tqdm import tqdm

        work = [(task, questions, arm) for task, questions in asked for arm in arms_asked(task, arms)]
        said: list[Said] = [{} for _ in asked]
        with tqdm(total=sum(len(q) * t.samples for t, q, _ in work), unit="answer", desc="answers") as bar:
            for (task, questions), found in zip(asked, said, strict=True):
                for arm in arms_asked(task, arms):
                    bar.set_postfix_str(f"{task.name}, {arm}")
                    with trained_adapter.in_effect(self.policy.model, arm):
                        found[arm] = self._of_arm(task, questions, arm, bar)
        return said

    def _of_arm(self, task: Task, questions: list[Question], arm: str, bar: Any) -> list[list[Answer]]:
        """One arm's answers, from the store or asked for now, in batches that do not depend on what is kept already.

        So a killed evaluation, whose last batch is kept whole or not at all, goes on with the very batches and
        random draws that it would have had.
        """
        tokenizer = self.policy.tokenizer
        texts = [text_of(question, arm, tokenizer) for question in questions]
        lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        sampling = task.sampling(arm == "base_plain")
        rows = [(i, k) for i in sorted(range(len(texts)), key=lambda i: lengths[i]) for k in range(task.samples)]
        keys = {row: self._key(task, questions[row[0]], arm, texts[row[0]], sampling, row[1]) for row in rows}
        known = self.store.known(keys.values())
        bar.update(sum(k in known for k in keys.values()))
        decoder = None

        def padded(row: tuple[int, int]) -> int:
            return lengths[row[0]] + task.max_tokens

        with ExitStack() as held:
            for number, batch in enumerate(batches_under_budget(rows, padded, self.budget)):
                missing = [row for row in batch if keys[row] not in known]
                if missing:
                    decoder = decoder or held.enter_context(self.decoding(self.policy.model))
                    seed = f"{self.seed} {task.name} {number}"
                    said = self.batch([texts[i] for i, _ in missing], sampling, seed, decoder)
                    entries = {keys[row]: asdict(answer) for row, answer in zip(missing, said, strict=True)}
                    self.store.keep(entries)
                    known |= entries
                    bar.update(len(missing))
        return [[Answer(**known[keys[i, k]]) for k in range(task.samples)] for i in range(len(questions))]

    def batch(self, texts: Any, sampling: Sampling, seed: str, decoder: Any) -> list[Answer]:
        """The answers to formatted prompts, or to their tokens, in one batch; its draws follow from the seed."""
        from grlo_lite.generation.answers import answers, seeded

        number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
        with self.until_memory_runs_out(), seeded(self.policy.model, number):
            return answers(self.policy.model, self.policy.tokenizer, texts, sampling, decoder)

    @contextmanager
    def until_memory_runs_out(self) -> Iterator[None]:
        """Inside, a GPU's memory that runs out is BadInput, which names the budget that may fit."""
        import torch

        try:
            yield
        except torch.OutOfMemoryError:
            raise BadInput(
                f"the GPU's memory does not hold --tokens-per-batch={self.budget}; what was answered is kept: "
                f"go on with --tokens-per-batch {self.budget // 2}"
            ) from None

    def arm_facts(self, arm: str) -> dict[str, Any]:
        """What an arm's answers depend on beside what is asked."""
        return {"arm": arm, **self.facts, "adapter_sha256": self.adapters.get(arm)}

    def _key(self, task: Task, question: Question, arm: str, text: str, sampling: Sampling, sample: int) -> str:
        drawn = {"seed": self.seed, "sample": sample} if sampling.temperature else {}
        settings = asdict(sampling) | drawn
        return key(
            **self.arm_facts(arm), task=task.name, version=task.version, question=question.id, text=text, **settings
        )


def text_of(question: Question, arm: str, tokenizer: Any) -> str:
    """What an arm goes on from: the question in the chat template, and in its plain form for the plain base."""
    from grlo_lite.models.chat_template import formatted

    if arm == "base_plain":
        return question.plain
    return formatted(tokenizer, [{"role": "user", "content": question.prompt}])


def arms_asked(task: Task, arms: tuple[str, ...]) -> tuple[str, ...]:
    """Where a judge compares two answers they are the base's and the tuned one's."""
    return arms if task.judged else tuple(arm for arm in arms if arm in ("base", "tuned"))
