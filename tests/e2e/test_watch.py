"""A run watched in a terminal while it grows."""

import codecs
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import sys
import termios
import time

import pytest

from grlo_lite.models.names import DEMO
from grlo_lite.rundir import files

FRAME = "\x1b[H\x1b[J"  # the cursor goes home and the rest is cleared
LATE = ("summary.json", "evaluation.json", "contamination.json", "adapter")  # written when a run ends


class Terminal:
    """`python -m grlo_lite.watch RUN` in a terminal of its own, and what it has drawn."""

    def __init__(self, run, columns, rows):
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        self.pid, self.tty = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a shell turns off for what it starts in the background
            time.sleep(0.1)  # until it has its size
            os.execve(sys.executable, [sys.executable, "-m", "grlo_lite.watch", run, "--every", "0.1"], environment)
        self.resize(columns, rows)
        self.drawn, self.decoder = "", codecs.getincrementaldecoder("utf-8")()

    def resize(self, columns, rows):
        fcntl.ioctl(self.tty, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def frames(self):
        """The frames, the newest last: each as its lines."""
        return [frame.split("\r\n") for frame in self.drawn.split(FRAME)[1:]]

    def until(self, condition, seconds=20.0):
        """The first frame from now on of which the condition holds, or the last one once the command has ended."""
        deadline, seen = time.monotonic() + seconds, len(self.frames())
        while True:
            for frame in self.frames()[seen:-1]:  # whole ones: the next has begun
                if condition("\n".join(frame)):
                    return frame
            if select.select([self.tty], [], [], 1.0)[0]:
                try:
                    self.drawn += self.decoder.decode(os.read(self.tty, 65536))
                except OSError:  # how Linux says that the other side is closed
                    return self.frames()[-1]
            assert time.monotonic() < deadline, self.drawn[-2000:]

    def code(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def growing(tmp_path):
    """A run of which three steps have been made."""
    shutil.copytree(DEMO, tmp_path / "run", ignore=shutil.ignore_patterns(*LATE))
    lines = files.read_lines(DEMO / "metrics.jsonl")
    (tmp_path / "run" / "metrics.jsonl").write_text(files.json_lines(lines[:3]))
    return tmp_path / "run", lines


def test_every_step_is_drawn_as_it_comes_and_the_end_ends_it(growing):
    run, lines = growing
    shown = Terminal(run, 100, 40)
    first = shown.until(lambda frame: "step 3 of 40" in frame)
    assert first[0].startswith("microcosm: ")
    assert "running: step 3 of 40" in first[1]
    for line in lines[3:6]:
        files.append_lines(run / "metrics.jsonl", [line])
        frame = shown.until(lambda frame, step=line["step"]: f"step {step} of 40" in frame)
        assert f"{line['reward_mean']:.3g}" in next(row for row in frame if row.startswith("Reward"))
    half = json.dumps(lines[6])
    with (run / "metrics.jsonl").open("a") as file:  # a line that is being written is not damage
        file.write(half[:40])
        file.flush()
        time.sleep(0.5)
        frame = "\n".join(shown.until(lambda frame: "step 6 of 40" in frame))
        assert "damaged" not in frame
        assert "--resume" not in frame  # it is running
        file.write(half[40:] + "\n")
    shown.until(lambda frame: "step 7 of 40" in frame)
    shown.resize(60, 12)
    narrow = shown.until(lambda frame: max(map(len, frame.split("\n"))) < 60)
    assert len(narrow) < 12
    shown.resize(100, 40)
    files.append_lines(run / "metrics.jsonl", lines[7:])
    for name in LATE[:3]:
        shutil.copyfile(DEMO / name, run / name)
    last = "\n".join(shown.until(lambda frame: False))
    assert "finished: step 40 of 40" in last
    assert re.search(r"average of tasks +0\.337 → 0\.918", last)
    assert shown.code() == 0
    steps = [int(found[1]) for frame in shown.frames() if (found := re.search(r"step (\d+) of 40", frame[1]))]
    assert steps == sorted(steps)
    assert all(len(line) < 100 for frame in shown.frames() for line in frame)


def test_ctrl_c_ends_the_looking_and_nothing_else(growing):
    run, _ = growing
    shown = Terminal(run, 80, 24)
    shown.until(lambda frame: "step 3 of 40" in frame)
    os.write(shown.tty, b"\x03")
    shown.until(lambda frame: False)
    assert shown.code() == 0
    assert "Traceback" not in shown.drawn
    assert len(files.read_lines(run / "metrics.jsonl")) == 3
