"""Time and memory of reading, cleaning and decontaminating prompts: `python benchmarks/prompts.py [ROWS …]`.

Prints a Markdown table. The prompts are made up: short (about 14 words), one in 20 an exact copy, one in 20 a long
prompt with one word changed, one in 1,000 too long, one in 1,000 a question of the 2,500 made to check against.
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

SIZES = (10_000, 100_000, 1_000_000)
OPENINGS = ("Write a short story about", "Explain to a child", "What is the difference between", "Give me advice on")


def main(sizes: list[int]) -> int:
    """Measures each size in a process of its own, so that one's peak memory is not another's."""
    print("| prompts | left | seconds | CPU seconds | peak MiB | µs CPU a prompt |\n" + "| --- " * 6 + "|")
    with tempfile.TemporaryDirectory() as folder:
        questions = Path(folder) / "questions.jsonl"
        questions.write_text("".join(json.dumps({"question": text}) + "\n" for text in made_questions()))
        for size in sizes:
            path = Path(folder) / f"{size}.jsonl"
            with path.open("w") as file:
                file.writelines(json.dumps({"prompt": text}) + "\n" for text in made_prompts(size))
            child = [sys.executable, __file__, "--measure", str(path), str(questions)]
            done = subprocess.run(child, check=True, capture_output=True, text=True)
            left, wall, cpu, peak = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {size:,} | {left:,} | {wall:.1f} | {cpu:.1f} | {peak:,.0f} | {cpu / size * 1e6:.0f} |", flush=True
            )
            path.unlink()
    return 0


def measure(path: str, questions: str) -> None:
    """Prints [rows left, wall seconds, CPU seconds, peak MiB] of one file's way through all steps."""
    from transformers import AutoTokenizer

    from grlo_lite import prompts
    from grlo_lite.models import names
    from grlo_lite.recipe.schema import Part

    tokenizer = AutoTokenizer.from_pretrained(names.POLICY)

    def token_count(messages: prompts.Messages) -> int:
        return len(tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])

    wall, cpu = time.monotonic(), time.process_time()
    rows, _ = prompts.load((Part(source=path),), None, seed=0)
    rows, steps = prompts.cleaned(rows, token_count, 1024, "drop", near=0.8, language=None)
    rows, step, report = prompts.decontaminated(rows, prompts.question_sets([questions], {}), 8, 0.8)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    print(prompts.steps_table([*steps, step]), prompts.verdict(report), sep="\n")
    print(json.dumps([len(rows), wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def made_prompts(count: int) -> Iterator[str]:
    """Made-up prompts, the same for the same count."""
    rng = random.Random(count)
    draw = word_draw(rng)
    questions = made_questions()
    recent: list[str] = []
    for number in range(count):
        kind = rng.random()
        if recent and kind < 0.05:
            text = rng.choice(recent)
        elif recent and kind < 0.10:
            said = rng.choice(recent).split()
            text = " ".join([*said[:-1], "indeed"])
        elif kind > 0.999:
            text = rng.choice(questions)
        elif number % 1000 == 999:
            text = " ".join(draw(1500))
        else:
            text = f"{rng.choice(OPENINGS)} {' '.join(draw(rng.randint(4, 16)))}?"
            recent = [text, *recent[:99]]
        yield text


def made_questions() -> list[str]:
    """2,500 made-up questions of 20 to 60 words."""
    rng = random.Random("questions")
    draw = word_draw(rng)
    return [" ".join(draw(rng.randint(20, 60))) for _ in range(2500)]


def word_draw(rng: random.Random):
    """Draws words from a vocabulary of 30,000, the n-th as often as 1/n, roughly as in natural text."""
    makes = random.Random("vocabulary")
    words = ["".join(makes.choices("etaoinshrdlucmfw", k=makes.randint(2, 9))) for _ in range(30_000)]
    weights = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))
    return lambda count: rng.choices(words, cum_weights=weights, k=count)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
    else:
        sys.exit(main([int(word) for word in sys.argv[1:]] or list(SIZES)))
