"""Base against tuned: `python -m grlo_lite.evaluate RUN|ADAPTER … [--suite NAME] [--tasks NAME,…] [--data-dir DIR]`.

Reads top to bottom: what is evaluated, which questions, the model, the answers of each arm, the verdicts, the result.
"""

import argparse
import os.path
import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grlo_lite.cli import INTERRUPTED, command_line, run_command, settle_libraries
from grlo_lite.errors import BadInput
from grlo_lite.evaluation.answer_store import AnswerStore
from grlo_lite.evaluation.answering import Asking, engine_facts, model_facts
from grlo_lite.evaluation.harness import evaluating, loading
from grlo_lite.evaluation.harness.evaluating import Prepared
from grlo_lite.evaluation.harness.requests import Wanted
from grlo_lite.evaluation.harness.served import Serving
from grlo_lite.evaluation.results import ARMS, PLAIN, Outcome, Rows, answer_rows, evaluation, table
from grlo_lite.evaluation.tasks import suites
from grlo_lite.evaluation.tasks.suites import Limits, suite_questions
from grlo_lite.evaluation.tasks.task import Asked, Task
from grlo_lite.evaluation.verdicts import judged_outcomes
from grlo_lite.generation.engine_table import ANSWERING
from grlo_lite.models import names, trained_adapter
from grlo_lite.models.trained_adapter import Subject
from grlo_lite.models.vllm_here import require_engine
from grlo_lite.rundir import files
from grlo_lite.wording import cut

ARMS_ASKED = {"base": ("base", PLAIN), "tuned": ("tuned",), "both": (*ARMS, PLAIN)}  # by --arm


@dataclass
class Chosen:
    """What is asked: the kit's own tasks, and lm-eval's by name."""

    title: str
    own: tuple[Task, ...]
    harness: list[str]


@dataclass
class Questions:
    """What will be asked: the kit's tasks with their questions, lm-eval's requests, and what was left out."""

    asked: Asked = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    harness: Prepared | None = None


@dataclass
class Answered:
    """What the arms said, and was judged."""

    outcomes: list[Outcome]
    harness: list[Any] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def main(argv: list[str] | None = None) -> int:
    """Evaluates, and returns the exit code. Raises BadInput where the user has to change something."""
    arguments = _parsed(argv)
    subject = trained_adapter.find(arguments.subject[0], arguments.base)
    others = [trained_adapter.find(path, arguments.base) for path in arguments.subject[1:]]
    chosen = _chosen(arguments, subject)
    print(f"{chosen.title} on {', '.join(str(s.adapter) for s in (subject, *others))}", flush=True)
    needs_no_hub = bool(arguments.data_dir) or (not chosen.harness and all(task.built_in for task in chosen.own))
    settle_libraries(offline=names.is_here(subject.base) and needs_no_hub)
    subject = trained_adapter.with_others(subject, others)
    questions = _questions(arguments, subject, chosen)
    subject, gone = trained_adapter.stages_here(subject)
    arms = _arms(arguments, subject)
    if arguments.dry_run:
        print(_plan(arguments, subject, questions, arms))
        return 0
    policy = trained_adapter.load(subject)
    with closing(AnswerStore(subject.run.answer_store)) as store:
        try:
            asking = Asking(policy, subject, store, arguments.seed, arguments.tokens_per_batch, arguments.engine)
            answered = _answered(arguments, questions, asking, subject, arms)
        except KeyboardInterrupt:
            print("\ninterrupted; what was answered is kept, and the same command goes on from there")
            return INTERRUPTED
    rows = answer_rows(answered.outcomes)
    rows += [row for outcome in answered.harness for row in evaluating.outcomes.answer_rows(outcome)]
    files.write_atomically(subject.run.answers, files.json_lines(rows))
    if arguments.arm != "both":
        _say_one_arm(answered)
        return 0
    facts = {"model": model_facts(policy, subject), "seed": arguments.seed, **engine_facts(arguments.engine)}
    facts |= {"others": {s.arm: str(s.adapter) for s in subject.others}} if subject.others else {}
    more, notes = Rows(), []
    if questions.harness is not None:
        beside = [stage.arm for stage in (*subject.stages, *subject.others)]
        more, notes = evaluating.rows(questions.harness, answered.harness, beside)
    facts |= {"notes": notes} if notes else {}
    missing = questions.missing + answered.missing + gone
    result = evaluation(chosen.title.removeprefix("suite "), answered.outcomes, missing, facts, more)
    files.write_json(subject.run.evaluation, result)
    print(f"\n{table(result)}\n\n{subject.run.evaluation}, and every answer with its verdict in {subject.run.answers}")
    return 0


def _chosen(arguments: argparse.Namespace, subject: Subject) -> Chosen:
    """The tasks that the command line names. Raises BadInput for one that nobody knows."""
    named = [name.strip() for name in (arguments.tasks or "").split(",") if name.strip()]
    suite = arguments.suite
    if suite is None and not named:
        suite = "microcosm" if names.name_of(subject.base) == "microcosm" else "quick"
    own = {name: task for name in named if (task := suites.task_named(name)) is not None}
    theirs = [name.removeprefix(loading.PREFIX) for name in named if name not in own]
    if theirs:
        known = {task.name for tasks in suites.SUITES.values() for task in tasks}
        loading.require_known(theirs, arguments.include_path, known)
    both = (*(suites.SUITES[suite] if suite else ()), *own.values())
    title = " and ".join(
        part for part in (f"suite {suite}" if suite else "", f"tasks {','.join(named)}" if named else "") if part
    )
    return Chosen(title, tuple(dict.fromkeys(both)), list(dict.fromkeys(theirs)))


def _questions(arguments: argparse.Namespace, subject: Subject, chosen: Chosen) -> Questions:
    """The questions of all tasks, before any model is loaded. Raises BadInput where nothing can be asked, or with
    --strict not everything.
    """
    found = Questions()
    if chosen.own:
        limits = Limits(
            arguments.limit, arguments.samples, arguments.max_tokens, arguments.data_dir,
            arguments.allow_code_execution, arguments.strict,
        )  # fmt: skip
        found.asked, found.missing = suite_questions(chosen.title, chosen.own, limits)
    if chosen.harness:
        serving = Serving(
            arguments.data_dir, arguments.num_fewshot, arguments.allow_code_execution, arguments.allow_task_code
        )
        loaded = loading.load(chosen.harness, arguments.include_path, serving, arguments.seed)
        for said in loaded.missing:
            print(f"left out: {said}", flush=True)
        if loaded.missing and (arguments.strict or not (loaded.tasks or found.asked)):
            raise BadInput(f"{'nothing' if not loaded.tasks else 'not all'} of it can be asked: {loaded.missing[0]}")
        found.missing += loaded.missing
        tokenizer = trained_adapter.tokenizer_of(subject.base, subject.revision, subject.adapter)
        wanted = Wanted(
            arguments.limit, arguments.max_tokens, arguments.samples, not arguments.no_chat_template, arguments.seed
        )
        longest = trained_adapter.longest_text(subject)
        found.harness = evaluating.prepare(loaded, tokenizer, longest, wanted)
    return found


def _arms(arguments: argparse.Namespace, subject: Subject) -> tuple[str, ...]:
    """The arms that are asked, in the order of the table."""
    arms = ARMS_ASKED[arguments.arm]
    if arguments.arm != "base":
        arms += tuple(other.arm for other in subject.others)
    if arguments.arm == "both":
        arms += tuple(stage.arm for stage in subject.stages)
    return arms


def _plan(arguments: argparse.Namespace, subject: Subject, questions: Questions, arms: tuple[str, ...]) -> str:
    """What the evaluation takes, by task and arm, on the card that is named or on what is here."""
    from grlo_lite.planning import answer_lengths, evaluation

    setting = evaluation.setting_of(subject, arguments.gpu, arguments.tokens_per_batch)
    heard, assumed = answer_lengths.heard(subject.run)
    tokenizer = trained_adapter.tokenizer_of(subject.base, subject.revision, subject.adapter)
    loads = evaluation.own_loads(questions.asked, tokenizer, arms, heard)
    if questions.harness is not None:
        loads += evaluation.harness_loads(questions.harness, arms, heard)
    if subject.run.answer_store.is_file():
        assumed += f"; what {subject.run.answer_store.name} keeps is not asked again, and is counted here all the same"
    return f"{assumed}\n{evaluation.text(loads, setting)}"


def _answered(
    arguments: argparse.Namespace, questions: Questions, asking: Asking, subject: Subject, arms: tuple[str, ...]
) -> Answered:
    """Every arm's answers, judged."""
    policy, store = asking.policy, asking.store
    with trained_adapter.stages_loaded(policy.model, (*subject.stages, *subject.others)), asking.engine_running():
        answers = asking.everything(questions.asked, arms)
        found, unscored = [], []
        if questions.harness is not None:
            found, unscored = evaluating.answered(questions.harness, asking, arms)
    outcomes = judged_outcomes(questions.asked, answers, policy, subject, arguments.judge, store)
    return Answered(outcomes, found, unscored)


def _say_one_arm(answered: Answered) -> None:
    for outcome in answered.outcomes:
        said = ", ".join(f"{arm} {outcome.scores(arm).mean():.3f}" for arm in outcome.verdicts)
        print(f"{outcome.task.name}: {said or 'answered, and to be judged against the other arm'}")
    for outcome in answered.harness:
        said = ", ".join(f"{arm} {evaluating.outcomes.headline(outcome, arm):.3f}" for arm in outcome.arms)
        print(f"{outcome.name}: {said}")
    print("the answers are kept; --arm both compares the arms")


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    description = "Base against tuned on the same questions, from one loaded model, with error bars."
    parser = command_line("evaluate", description)
    parser.add_argument(
        "subject", type=Path, nargs="+", metavar="RUN|ADAPTER",
        help="a run directory, or a PEFT adapter's folder; further ones of the same base are compared with it",
    )  # fmt: skip
    parser.add_argument("--suite", choices=suites.SUITES, help="default: the microcosm's for its model, else quick")
    parser.add_argument(
        "--tasks", metavar="NAME[,NAME…]",
        help="tasks of the kit, or any task, group or tag of lm-eval; lm-eval:NAME where both have one",
    )  # fmt: skip
    parser.add_argument("--include-path", type=Path, metavar="DIR", help="a folder with YAML tasks of your own")
    parser.add_argument("--num-fewshot", type=int, help="examples before a question of lm-eval's tasks")
    parser.add_argument("--no-chat-template", action="store_true", help="ask lm-eval's tasks without the template")
    parser.add_argument("--limit", type=int, help="questions a task, a random choice that is always the same")
    parser.add_argument("--samples", type=int, help="answers a question in the tasks that are sampled (avg@K)")
    parser.add_argument("--max-tokens", type=int, help="a lower limit on the length of answers than the tasks' own")
    parser.add_argument(
        "--data-dir", type=Path, help="read all questions from the files in this folder, none from a hub"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what it takes, by task and arm; load no weights")
    parser.add_argument("--gpu", help="with --dry-run: a known card, or VRAM=24 (default: what is here)")
    parser.add_argument("--strict", action="store_true", help="stop where a task's questions are missing")
    parser.add_argument("--arm", choices=ARMS_ASKED, default="both", help="answer with one arm only")
    parser.add_argument("--base", help="the base model, where it is not where the adapter says")
    parser.add_argument("--judge", help="a reward model, or URL#MODEL of an OpenAI-compatible endpoint")
    parser.add_argument("--allow-code-execution", action="store_true", help="run the model's code, in the sandbox")
    parser.add_argument(
        "--allow-task-code", action="store_true",
        help="run functions of your own YAML, and metrics that are programs on a hub, unconfined",
    )  # fmt: skip
    parser.add_argument(
        "--engine", choices=ANSWERING, default="kit",
        help="who answers: the kit's own decoder, or vLLM, base and adapters as requests to one (docs/vllm.md)",
    )  # fmt: skip
    parser.add_argument("--tokens-per-batch", type=int, help="default: what the GPU's free memory holds")
    parser.add_argument("--seed", type=int, default=0, help="of the sampled answers")
    arguments = parser.parse_args(argv)
    if arguments.gpu and not arguments.dry_run:
        raise BadInput(f"--gpu={arguments.gpu} names a card to plan for; add --dry-run, or leave it out")
    least_of = {"limit": 2, "samples": 1, "max_tokens": 1, "tokens_per_batch": 1, "num_fewshot": 0}
    for name, least in least_of.items():
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise BadInput(f"--{name.replace('_', '-')}={value} is too small; it must be at least {least}")
    for name, what in (
        ("data_dir", "docs/evaluation.md lists the files it may hold"),
        ("include_path", "it must hold the YAML of your tasks"),
    ):
        folder = getattr(arguments, name)
        if folder is not None and not os.path.isdir(folder):  # Path.is_dir() raises where a name is too long
            raise BadInput(f"--{name.replace('_', '-')}={cut(str(folder))} is no folder; {what}")
    require_engine(arguments.engine)
    return arguments


if __name__ == "__main__":
    sys.exit(run_command(main))
