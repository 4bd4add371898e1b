"""What answers are worth: a task's scorer over them, or a pairwise judge between the arms."""

from dataclasses import asdict
from functools import partial
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.evaluation import pairwise_judge
from grlo_lite.evaluation.answer_store import AnswerStore, key
from grlo_lite.evaluation.results import Outcome, scored
from grlo_lite.evaluation.tasks.task import Asked, Question, Said, Verdict
from grlo_lite.models import names
from grlo_lite.models.trained_adapter import Subject
from grlo_lite.recipe.schema import Judge


def judged_outcomes(
    asked: Asked, answers: list[Said], policy: Any, subject: Subject, pairwise: str | None, store: AnswerStore
) -> list[Outcome]:
    """Each task's verdicts: by its scorer, or, where it has none and both arms answered, by the pairwise judge of that
    name, by default one that did not train the adapter.
    """
    outcomes = []
    for (task, questions), said in zip(asked, answers, strict=True):
        if task.judged is not None:
            print(f"judging {task.name}", flush=True)
            outcomes.append(scored(task, questions, said))
        elif {"base", "tuned"} <= set(said):
            name = pairwise or _default_pairwise_judge(subject)
            print(f"judging {task.name} with {name}", flush=True)
            verdicts, comparison = _compared(questions, said, name, policy, subject, store)
            outcomes.append(Outcome(task, questions, said, verdicts, comparison))
        else:
            outcomes.append(Outcome(task, questions, {}, {}))
    return outcomes


def _default_pairwise_judge(subject: Subject) -> str:
    """A reward model of another family than the one that the adapter was trained by."""
    if names.name_of(subject.base) == "microcosm":
        return "microcosm-heldout"
    llama = "llama" in (subject.trained_by or "").lower()
    return f"Skywork/Skywork-Reward-V2-{'Qwen3-4B' if llama else 'Llama-3.2-3B'}"


def _compared(
    questions: list[Question], said: Said, name: str, policy: Any, subject: Subject, store: AnswerStore
) -> tuple[dict[str, list[list[Verdict]]], dict[str, Any]]:
    """The pairwise judge's preferences as verdicts of both arms, and its part of evaluation.json."""
    texts = {arm: [samples[0].text for samples in said[arm]] for arm in ("base", "tuned")}
    triples = list(zip([q.prompt for q in questions], texts["base"], texts["tuned"], strict=True))
    keys = [key(judge=name, prompt=p, base=b, tuned=t) for p, b, t in triples]
    known = store.known(keys)
    missing = [i for i, k in enumerate(keys) if k not in known]
    if missing:
        prefer = _by_endpoint(name) if "://" in name else _by_reward_model(name, policy.model.device)
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


def _by_endpoint(name: str) -> Any:
    url, hash_sign, model = name.partition("#")
    if not hash_sign or not model:
        raise BadInput(
            f"--judge={name} names no model; write it behind the address, as in http://localhost:8000/v1#NAME"
        )
    return partial(pairwise_judge.by_endpoint, url, model)


def _by_reward_model(name: str, device: Any) -> Any:
    from grlo_lite.models import reward_model

    model = reward_model.load(Judge(name=name), device, 4096, "auto")
    return partial(pairwise_judge.by_reward, model.score)


def _relation(name: str, subject: Subject) -> str:
    """How independent the pairwise judge is of the reward model that the adapter was trained by."""
    if subject.trained_by is None:
        return "what the adapter was trained by is not known"
    if name == subject.trained_by:
        return "which the adapter was trained by: it shows that training worked, not that the answers are better"
    return f"the adapter was trained by {subject.trained_by}"
