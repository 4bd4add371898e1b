"""What answers are worth: a task's scorer over them, or a judge between the arms."""

from dataclasses import asdict
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.evaluation import pairwise_judge
from grlo_lite.evaluation.answer_store import AnswerStore, key
from grlo_lite.evaluation.results import Outcome, scored
from grlo_lite.evaluation.tasks.task import Question, Task, Verdict
from grlo_lite.generation.request import Answer
from grlo_lite.models import names
from grlo_lite.models.trained_adapter import Subject
from grlo_lite.recipe.schema import Judge


def judged_outcomes(
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
        if task.judged is not None:
            print(f"judging {task.name}", flush=True)
            outcomes.append(scored(task, questions, said))
        elif {"base", "tuned"} <= set(said):
            name = judge or _default_judge(subject)
            print(f"judging {task.name} with {name}", flush=True)
            verdicts, comparison = _compared(questions, said, name, policy, subject, store)
            outcomes.append(Outcome(task, questions, said, verdicts, comparison))
        else:
            outcomes.append(Outcome(task, questions, {}, {}))
    return outcomes


def _default_judge(subject: Subject) -> str:
    """A reward model of another family than the one that the adapter was trained by."""
    if names.name_of(subject.base) == "microcosm":
        return "microcosm-heldout"
    llama = "llama" in (subject.trained_by or "").lower()
    return f"Skywork/Skywork-Reward-V2-{'Qwen3-4B' if llama else 'Llama-3.2-3B'}"


def _compared(
    questions: list[Question], said: dict[str, list[list[Answer]]], name: str, policy: Any, subject: Subject, store: Any
) -> tuple[dict[str, list[list[Verdict]]], dict[str, Any]]:
    """The judge's preferences as verdicts of both arms, and its part of evaluation.json."""
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
    preferences = [pairwise_judge.Preference(**known[k]) for k in keys]
    verdicts = {
        "base": [[Verdict(1 - p.win, "", p.why)] for p in preferences],
        "tuned": [[Verdict(p.win, "", p.why)] for p in preferences],
    }
    about = {"name": name, "relation": _relation(name, subject)}
    return verdicts, about | pairwise_judge.comparison(preferences, texts["base"], texts["tuned"])


def _endpoint(name: str) -> Any:
    url, hash_sign, model = name.partition("#")
    if not hash_sign or not model:
        raise BadInput(
            f"--judge={name} names no model; write it behind the address, as in http://localhost:8000/v1#NAME"
        )
    return lambda prompts, base, tuned: pairwise_judge.by_endpoint(url, model, prompts, base, tuned)


def _reward_judge(name: str, device: Any) -> Any:
    from grlo_lite.models import reward_model

    model = reward_model.load(Judge(name=name), device, 4096, "auto")
    return lambda prompts, base, tuned: pairwise_judge.by_reward(model.score, prompts, base, tuned)


def _relation(name: str, subject: Subject) -> str:
    """How independent the judge is of the reward model that the adapter was trained by."""
    if subject.trained_by is None:
        return "what the adapter was trained by is not known"
    if name == subject.trained_by:
        return "which the adapter was trained by: it shows that training worked, not that the answers are better"
    return f"the adapter was trained by {subject.trained_by}"
