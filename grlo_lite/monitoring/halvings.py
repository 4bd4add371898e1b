"""What had to be halved in a run because memory ran out."""

from tqdm import tqdm

from grlo_lite.machine import processes
from grlo_lite.rundir.files import append_lines, read_lines
from grlo_lite.rundir.layout import RunDir

GUARD = "out_of_memory"


HALVED = {
    "rollout": "completions at once",
    "dense copy": "bytes of weights",  # which is given up whole
    "vLLM's cache": "bytes",
    "reward": "tokens a batch",
    "update": "micro-batch",
}


class Halvings:
    """What had to be halved in a run so far, a line each in guards.jsonl, so that a resumed run begins with it."""

    def __init__(self, run: RunDir):
        self.run = run
        self.writes = processes.is_main()
        self.step = 0
        self.made = [line for line in read_lines(run.guards) if line["guard"] == GUARD]

    def smallest(self, phase: str) -> int | None:
        """What a phase was last halved to; None where it never was."""
        return min((line["now"] for line in self.made if line["phase"] == phase), default=None)

    def note(self, phase: str, was: int, now: int) -> None:
        """Says and writes down that a phase goes on with less at once."""
        message = f"the {phase} was out of memory and goes on with {HALVED[phase]} {was:,} -> {now:,}"
        tqdm.write(f"step {self.step}: {message}")
        line = {"step": self.step, "guard": GUARD, "message": message, "phase": phase, "was": was, "now": now}
        self.made.append(line)
        if self.writes:
            append_lines(self.run.guards, [line])
