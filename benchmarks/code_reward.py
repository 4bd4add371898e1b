"""Seconds a step for scoring code: `python benchmarks/code_reward.py --data DIR`, where DIR holds HumanEval.jsonl.gz.

32 completions, four to each of eight questions, half of them right; then with a fork bomb and an endless loop among
them, which have to earn nothing.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from grlo_lite.models.chat_template import Prompt, with_answers
from grlo_lite.prompts import load
from grlo_lite.recipe.schema import Part, Reward
from grlo_lite.rewards import verifiable

BOMB = "```python\nimport os\ndef {0}(*a):\n    while True:\n        os.fork()\n```"
LOOP = "```python\ndef {0}(*a):\n    while True:\n        pass\n```"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rows, _ = load((Part(source=str(arguments.data / "HumanEval.jsonl.gz"), column="prompt"),), 8, 0, columns=True)
    asked, plain, hostile = [], [], []
    for number, row in enumerate(rows):
        assert isinstance(row, Prompt)
        right = row.columns["prompt"] + row.columns["canonical_solution"]
        wrong = row.columns["prompt"] + "    return None\n"
        attack = (BOMB if number == 2 else LOOP if number == 4 else wrong).format(row.columns["entry_point"])
        asked += [row] * 4
        plain += [right, wrong, right, wrong]
        hostile += [right, wrong, right, attack if number in (2, 4) else wrong]
    reward = Reward(verifiable=("code",))  # pyright: ignore[reportArgumentType] (a name alone is one)
    print(f"{os.cpu_count()} cores, reward.code_seconds={reward.code_seconds}")
    for name, texts in (("32 completions", plain), ("with a fork bomb and an endless loop", hostile)):
        seconds = []
        for _ in range(arguments.repeats):
            began = time.monotonic()
            scores = verifiable.scores(0, reward, with_answers(asked, texts))
            seconds.append(time.monotonic() - began)
            assert scores.tolist() == [1, 0] * 16, scores
        print(f"{name}: {min(seconds):.2f} to {max(seconds):.2f} s a step; 16 right, 16 wrong, as they should be")
    return 0


if __name__ == "__main__":
    sys.exit(main())
