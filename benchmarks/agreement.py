"""Our verdicts beside those of lm-eval's bundled tasks on the same answers: `python benchmarks/agreement.py DATA_DIR`.

The answers are the reference answers, and every fourth question's successor's, in the wordings of scoring.py; they go
through lm-eval's own evaluator (prompts, filters, metrics) by a model that recites them. Every disagreement is listed
by question with both sides. lm-eval's HumanEval and MBPP fetch their metric from a hub and are not among these.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from scoring import solutions, worded

from grlo_lite.evaluation.tasks import mathematics as mathematics_tasks
from grlo_lite.evaluation.tasks import questions
from grlo_lite.evaluation.tasks.task import Question, Task

# our task: lm-eval's YAML, the metrics to compare with, and the row's fields under the names that lm-eval's task reads
BUNDLED = {
    mathematics_tasks.GSM8K: ("gsm8k/gsm8k.yaml", ("exact_match,strict-match", "exact_match,flexible-extract"), {}),
    mathematics_tasks.MATH500: ("minerva_math/minerva_math500.yaml", ("math_verify,none", "exact_match,none"), {}),
    mathematics_tasks.AIME24: ("aime/aime24.yaml", ("exact_match,none",), {"Problem": "problem", "Answer": "answer"}),
}


class Reciting(LM):
    """A model that answers document i with text i."""

    def __init__(self, texts: list[str]):
        super().__init__()
        self.texts = texts

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        return [self.texts[request.doc_id] for request in requests]

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        raise NotImplementedError("the tasks here generate")

    def loglikelihood_rolling(self, requests: list[Any]) -> list[Any]:
        raise NotImplementedError("the tasks here generate")


def bundled_scores(task: Task, file: Path, texts: list[str]) -> dict[str, list[float]]:
    """lm-eval's score of each answer, by metric and filter."""
    yaml_path, metrics, renamed = BUNDLED[task]
    config = bundled_config(Path(lm_eval.__file__).parent / "tasks" / yaml_path)
    split = config["test_split"]
    # Fewer shots change the prompt, which a reciting model does not read
    config |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {split: str(file)}}}
    config |= {"num_fewshot": 0, "training_split": None, "fewshot_split": None}
    if renamed:
        config["process_docs"] = lambda documents: documents.rename_columns({old: new for new, old in renamed.items()})
    done = simple_evaluate(Reciting(texts), tasks=[config], log_samples=True, bootstrap_iters=0, verbosity="ERROR")
    assert done is not None
    samples = done["samples"][config["task"]]  # pyright: ignore[reportTypedDictNotRequiredAccess]
    scores = {}
    for metric in metrics:
        name, kind = metric.split(",")
        rows = {s["doc_id"]: float(s[name]) for s in samples if s["filter"] == kind}
        scores[metric] = [rows[i] for i in range(len(texts))]
    return scores


def bundled_config(path: Path) -> dict[str, Any]:
    """A bundled task's YAML as a dictionary, with what it includes and its functions."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return dict(load_yaml(path, resolve_func=True))


def answers(task: Task, asked: list[Question], rows: list[dict[str, Any]], wording: str) -> list[str]:
    """The reference answers in a wording, every fourth one replaced by the next question's: a wrong one, mostly."""
    own = solutions(task, rows)
    texts = [own[q.id] if wording == "its solution" else worded(task, q)[wording] for q in asked]
    return [texts[(i + 1) % len(texts)] if i % 4 == 3 else text for i, text in enumerate(texts)]


def main(data: Path) -> int:
    print("| task | wording | lm-eval's metric | n | ours right | lm-eval's right | only ours | only lm-eval's |")
    print("| --- " * 8 + "|")
    listed = []
    for task in BUNDLED:
        assert task.judged is not None
        file = next(data / name for name in task.files if (data / name).is_file())
        rows = questions.rows_of(file)
        asked = task.questions(rows)
        for wording in (*worded(task, asked[0]), "its solution"):
            texts = answers(task, asked, rows, wording)
            verdicts = [task.judged(q, text) for q, text in zip(asked, texts, strict=True)]
            for metric, theirs in bundled_scores(task, file, texts).items():
                pairs = Counter((int(v.score), int(t)) for v, t in zip(verdicts, theirs, strict=True))
                ours_right, theirs_right = pairs[1, 0] + pairs[1, 1], pairs[0, 1] + pairs[1, 1]
                numbers = f"{len(asked)} | {ours_right} | {theirs_right} | {pairs[1, 0]} | {pairs[0, 1]}"
                print(f"| {task.name} | {wording} | {metric} | {numbers} |", flush=True)
                for q, text, v, t in zip(asked, texts, verdicts, theirs, strict=True):
                    if v.score != t:
                        sides = f"ours {v.score:.0f} ({v.why}), lm-eval's {t:.0f}"
                        shown = f"answer {text[-60:]!r}, reference {q.reference!r}"
                        listed.append(f"{task.name} {q.id}, {wording}, {metric}: {sides}; {shown}")
    print("\n" + "\n".join(listed))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
