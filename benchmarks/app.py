"""How quick the comparison app is: `python benchmarks/app.py [--repeats 5]`.

The demo's start, the first token after a question, and what two answers in one batch cost beside one alone, both of
the same length. Prints a line a result; nothing else should run meanwhile.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from grlo_lite.app.comparison import loading
from grlo_lite.app.comparison.comparison import Comparison
from grlo_lite.app.comparison.values import Settings
from grlo_lite.cli import settle_libraries
from grlo_lite.evaluation.results import ARMS
from grlo_lite.models import names, trained_adapter

ROOT = Path(__file__).parents[1]
QUESTION = "Why do people like the oven?"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    settle_libraries(offline=True)
    starts, firsts = zip(*(started() for _ in range(repeats)), strict=True)
    print(f"page ready after the command: {shown(starts)}")
    print(f"first tokens after the question, over HTTP: {shown(firsts)}")
    comparison = loading.load([trained_adapter.find(names.DEMO, None)])
    comparison.warm_up()
    for tokens in (64, 256):
        took: dict[tuple[str, ...], list[float]] = {arms: [] for arms in (("base",), ("tuned",), ARMS)}
        for _ in range(repeats + 1):  # the first of each is not counted
            for arms, seconds in took.items():
                seconds.append(answered(comparison, arms, tokens))
        alone, other, together = (statistics.median(seconds[1:]) for seconds in took.values())
        print(
            f"{tokens} tokens: base alone {alone:.2f} s, tuned alone {other:.2f} s, both at once {together:.2f} s: "
            f"{together / alone:.2f} times the base, {together / other:.2f} times the tuned one, "
            f"{2 * together / (alone + other):.2f} times their mean"
        )
    return 0


def started() -> tuple[float, float]:
    """Seconds from the command to a page that is served, and from a question to the first tokens of both arms."""
    import httpx
    from gradio_client import Client

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, str(ROOT / "app.py"), "--demo", "--port", "0", "--votes", f"{folder}/votes.jsonl"]
        began = time.monotonic()
        with log.open("w") as output:
            app = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            while not (ready := re.search(r"ready at (http://\S+)", log.read_text())):
                assert app.poll() is None, log.read_text()
                time.sleep(0.01)
            httpx.get(ready[1]).raise_for_status()
            start = time.monotonic() - began
            client = Client(ready[1], verbose=False)
            began = time.monotonic()
            states: Any = client.submit(QUESTION, api_name="/compare")
            for state in states:
                if all(state.get(arm, {}).get("tokens") for arm in ARMS):
                    return start, time.monotonic() - began
            raise AssertionError("no arm said anything")
        finally:
            app.kill()
            app.wait()


def answered(comparison: Comparison, arms: tuple[str, ...], tokens: int) -> float:
    """Seconds of one request whose every answer has exactly so many tokens: nothing ends a turn."""
    generation = comparison.model.generation_config
    kept, generation.eos_token_id = generation.eos_token_id, -1
    try:
        began = time.monotonic()
        replies = comparison.answers([], QUESTION, next(iter(comparison.adapters)), Settings(tokens), arms)
        seconds = time.monotonic() - began
    finally:
        generation.eos_token_id = kept
    assert all(reply.tokens == tokens for reply in replies.values())
    return seconds


def shown(seconds: tuple[float, ...]) -> str:
    return f"median {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s of {len(seconds)}"


if __name__ == "__main__":
    sys.exit(main())
