"""IFEval: instructions whose following a program can check; the checks are lm-eval's own, which are the reference."""

from importlib.util import find_spec
from typing import Any

from grlo_lite.evaluation.tasks.task import Question, Task, Verdict


def ifeval(rows: list[dict[str, Any]]) -> list[Question]:
    """IFEval's rows: a prompt, the instructions in it by id, and their arguments."""
    return [
        Question(
            str(row["key"]),
            row["prompt"],
            f"Request: {row['prompt']}\nResponse:",
            "",
            {key: row[key] for key in ("key", "prompt", "instruction_id_list", "kwargs")},
        )
        for row in rows
    ]


def unavailable() -> str:
    """Why IFEval cannot be scored here, with the mend; empty where it can. lm-eval would say so only at scoring."""
    missing = [name for name in ("immutabledict", "langdetect", "lm_eval", "nltk") if find_spec(name) is None]
    if missing:
        return f"its checks are lm-eval's, and {missing[0]} is not installed; pip install 'grlo-lite[eval]'"
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return "its checks need nltk's punkt_tab; python -m nltk.downloader punkt_tab"
    return ""


def judged(question: Question, text: str) -> Verdict:
    """Right where every instruction was followed (prompt-level strict accuracy); names those that were not."""
    from lm_eval.tasks.ifeval.utils import process_results

    followed = process_results(question.data, [text])["inst_level_strict_acc"]
    broken = [name for name, kept in zip(question.data["instruction_id_list"], followed, strict=True) if not kept]
    return Verdict(float(not broken), "", f"not followed: {', '.join(broken)}" if broken else "all followed")


IFEVAL = Task(
    "ifeval", "instructions", 1, 1280, ifeval, judged, ("ifeval.jsonl",), ("google/IFEval", None, "train"),
    stops=("\nRequest:",), size=541, hindrance=unavailable,
)  # fmt: skip
