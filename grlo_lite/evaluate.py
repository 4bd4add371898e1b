"""Base against tuned: `python -m grlo_lite.evaluate RUN|ADAPTER [--suite NAME] [--limit N] [--data-dir DIR]`.

Reads top to bottom: what is evaluated, which questions, the model, the answers of each arm, the verdicts, the result.
"""

import argparse
import os.path
import sys
from pathlib import Path

from grlo_lite.cli import INTERRUPTED, command_line, run_command, settle_libraries
from grlo_lite.errors import BadInput
from grlo_lite.evaluation.answer_store import AnswerStore
from grlo_lite.evaluation.answering import Asking, model_facts
from grlo_lite.evaluation.results import ARMS, PLAIN, answer_rows, evaluation, table
from grlo_lite.evaluation.tasks import suites
from grlo_lite.evaluation.tasks.suites import Limits, suite_questions
from grlo_lite.evaluation.verdicts import judged_outcomes
from grlo_lite.models import names, trained_adapter
from grlo_lite.rundir import files
from grlo_lite.wording import cut

ARMS_ASKED = {"base": ("base", PLAIN), "tuned": ("tuned",), "both": (*ARMS, PLAIN)}  # by --arm


def main(argv: list[str] | None = None) -> int:
    """Evaluates, and returns the exit code. Raises BadInput where the user has to change something."""
    arguments = _parsed(argv)
    subject = trained_adapter.find(arguments.subject, arguments.base)
    suite = arguments.suite or ("microcosm" if names.name_of(subject.base) == "microcosm" else "quick")
    print(f"suite {suite} on {subject.adapter}", flush=True)
    needs_no_hub = bool(arguments.data_dir) or all(task.built_in for task in suites.SUITES[suite])
    settle_libraries(offline=names.is_here(subject.base) and needs_no_hub)
    limits = Limits(
        arguments.limit, arguments.samples, arguments.max_tokens, arguments.data_dir,
        arguments.allow_code_execution, arguments.strict,
    )  # fmt: skip
    asked, missing = suite_questions(suite, suites.SUITES[suite], limits)
    policy = trained_adapter.load(subject)
    store = AnswerStore(subject.run.answer_store)
    try:
        asking = Asking(policy, subject, store, arguments.seed, arguments.tokens_per_batch)
        answers = asking.everything(asked, ARMS_ASKED[arguments.arm])
        outcomes = judged_outcomes(asked, answers, policy, subject, arguments.judge, store)
    except KeyboardInterrupt:
        print("\ninterrupted; what was answered is kept, and the same command goes on from there")
        return INTERRUPTED
    finally:
        store.close()
    files.write_atomically(subject.run.answers, files.json_lines(answer_rows(outcomes)))
    if arguments.arm != "both":
        for outcome in outcomes:
            said = ", ".join(f"{arm} {outcome.scores(arm).mean():.3f}" for arm in outcome.verdicts)
            print(f"{outcome.task.name}: {said or 'answered, and to be judged against the other arm'}")
        print("the answers are kept; --arm both compares the arms")
        return 0
    result = evaluation(suite, outcomes, missing, {"model": model_facts(policy, subject), "seed": arguments.seed})
    files.write_json(subject.run.evaluation, result)
    print(f"\n{table(result)}\n\n{subject.run.evaluation}, and every answer with its verdict in {subject.run.answers}")
    return 0


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    description = "Base against tuned on the same questions, from one loaded model, with error bars."
    parser = command_line("evaluate", description)
    parser.add_argument("subject", type=Path, metavar="RUN|ADAPTER", help="a run directory, or a PEFT adapter's folder")
    parser.add_argument("--suite", choices=suites.SUITES, help="default: the microcosm's for its model, else quick")
    parser.add_argument("--limit", type=int, help="questions a task, a random choice that is always the same")
    parser.add_argument("--samples", type=int, help="answers a question in the tasks that are sampled (avg@K)")
    parser.add_argument("--max-tokens", type=int, help="a lower limit on the length of answers than the tasks' own")
    parser.add_argument(
        "--data-dir", type=Path, help="read all questions from the files in this folder, none from a hub"
    )
    parser.add_argument("--strict", action="store_true", help="stop where a task's questions are missing")
    parser.add_argument("--arm", choices=ARMS_ASKED, default="both", help="answer with one arm only")
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
    folder = arguments.data_dir
    if folder is not None and not os.path.isdir(folder):  # Path.is_dir() raises where a name is too long
        raise BadInput(f"--data-dir={cut(str(folder))} is no folder; docs/evaluation.md lists the files it may hold")
    return arguments


if __name__ == "__main__":
    sys.exit(run_command(main))
