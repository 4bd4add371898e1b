"""Questions for lm-eval's bundled tasks where there is no network: `python benchmarks/lm_eval_files.py DIR`.

Made-up rows in the schemas that the tasks' YAML reads, as `--data-dir` takes them, and a YAML task with its file.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gwen", "Hugo")
THINGS = ("apples", "books", "coins", "doors", "eggs", "flags", "gloves", "hats", "jars", "keys")
PLACES = ("garden", "kitchen", "market", "river", "school", "station", "tower", "village")

OWN_YAML = """\
task: counting
dataset_path: json
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_target: right
doc_to_choice: options
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: mcc, aggregation: matthews_corrcoef, higher_is_better: true}
metadata: {version: 1.0}
"""


def sums(count: int, seed: int) -> list[tuple[str, int, list[int]]]:
    """Questions of a sum with the right answer and four options in a drawn order."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        a, b, thing = draw.randint(2, 40), draw.randint(2, 40), draw.choice(THINGS)
        first, second = draw.sample(NAMES, 2)
        options = [a + b, a + b + 1, a + b - 2, a + b + 10]
        draw.shuffle(options)
        question = f"{first} has {a} {thing} and {second} gives {b} more. How many {thing} are there?"
        found.append((question, a + b, options))
    return found


def arc(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of ARC."""
    return [
        {
            "id": str(i),
            "question": question,
            "choices": {"text": [f"{option}" for option in options], "label": list("ABCD")},
            "answerKey": "ABCD"[options.index(right)],
        }
        for i, (question, right, options) in enumerate(sums(count, seed))
    ]


def lettered(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of WMDP and MMLU."""
    return [
        {"question": question, "choices": [str(option) for option in options], "answer": options.index(right)}
        for question, right, options in sums(count, seed)
    ]


def lambada(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of LAMBADA: the last word was said before."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        name, thing, place = draw.choice(NAMES), draw.choice(THINGS), draw.choice(PLACES)
        text = f"{name} took the {thing} to the {place}. Everyone in the {place} liked the {thing}, and so did {name}"
        rows.append({"text": text})
    return rows


def pages(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of WikiText's whole documents."""
    draw = random.Random(seed)
    return [
        {"page": " \n ".join(row["text"] + " ." for row in lambada(draw.randint(2, 12), seed + i))}
        for i in range(count)
    ]


def gsm8k(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of GSM8K."""
    return [
        {"question": question, "answer": f"There are {right} in all.\n#### {right}"}
        for question, right, _ in sums(count, seed)
    ]


def write(folder: Path, count: int = 50) -> None:
    """Writes the files of five bundled tasks and a group, `count` questions each, and a YAML task with its own."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {
        "arc_easy": arc(count, 1),
        "lambada_openai": lambada(count, 2),
        "wikitext": pages(count, 3),
        "gsm8k": gsm8k(count, 4),
        "gsm8k.train": gsm8k(20, 5),
        **{f"wmdp_{part}": lettered(count + 10 * i, 6 + i) for i, part in enumerate(("bio", "chem", "cyber"))},
    }
    rows["own/counting"] = [
        {"question": row["question"], "options": row["choices"], "right": row["answer"]} for row in lettered(count, 9)
    ]
    for name, found in rows.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{json.dumps(row)}\n" for row in found))
    own = json.dumps(str((folder / "own" / "counting.jsonl").resolve()))
    (folder / "own" / "counting.yaml").write_text(f"{OWN_YAML}dataset_kwargs: {{data_files: {{test: {own}}}}}\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
