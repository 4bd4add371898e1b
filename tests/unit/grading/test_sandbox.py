import os
import socket
import time

import pytest

from grlo_lite.grading import sandbox
from grlo_lite.grading.sandbox import passes

pytestmark = pytest.mark.skipif(bool(sandbox.unavailable()), reason=sandbox.unavailable() or "confined")

FORK_BOMB = "import os\nwhile True:\n    os.fork()"
STUBBORN_FORK_BOMB = """
import os, subprocess, threading
while True:
    try:
        os.fork()
    except OSError:
        pass
"""


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (FORK_BOMB, "PermissionError"),
        (STUBBORN_FORK_BOMB, "still running after 1 s"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError"),
        ("import os; os.posix_spawn('/bin/true', ['true'], {})", "PermissionError"),
        ("while True: pass", "still running after 1 s"),
        ("import signal, time\nsignal.pthread_sigmask(0, range(1, 32))\nwhile True: time.sleep(1)", "still running"),
        ("kept = bytearray(10 * 2**30)", "MemoryError"),
        ("while True: print('x' * 10**6)", "still running"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "exit code 0"),
        ("assert 1 == 2, 'one is not two'", "AssertionError: one is not two"),
        ("def broken(:", "SyntaxError"),
        ("open('big', 'wb').write(bytes(20 * 2**20))", ""),
        ("import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "not allowed to raise"),
        ("import ctypes; ctypes.string_at(0)", "exit code -11"),
    ],
)
def test_what_must_be_stopped_is_stopped_and_failed(program, why):
    began = time.monotonic()
    outcome = passes(program, seconds=1.0)
    assert not outcome.passed
    assert why in outcome.why
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "attempt",
    [
        "open({outside!r} + '/new', 'w')",
        "open({outside!r} + '/there', 'w')",
        "open({outside!r} + '/there').read()",
        "import os; os.truncate({outside!r} + '/there', 0)",
        "import os; os.remove({outside!r} + '/there')",
        "import os; os.chmod({outside!r} + '/there', 0)",
        "import os; os.utime({outside!r} + '/there', (0, 0))",
        "import os; os.rename({outside!r} + '/there', 'mine')",
        "import os; os.listdir({outside!r})",
        "import os; open(f'/proc/{{os.getppid()}}/environ').read()",
        "open('/dev/shm/new', 'w')",
    ],
)
def test_files_outside_its_folder_are_out_of_reach(tmp_path, attempt):
    (tmp_path / "there").write_text("untouched")
    before = (tmp_path / "there").stat()
    outcome = passes(attempt.format(outside=str(tmp_path)))
    assert not outcome.passed
    assert "PermissionError" in outcome.why or "OSError" in outcome.why
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_text() == "untouched"
    assert (tmp_path / "there").stat()[:9] == (*before[:7], (tmp_path / "there").stat().st_atime.__int__(), before[8])


def test_no_network_not_even_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        port = server.getsockname()[1]
        outcome = passes(f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2)")
        assert not outcome.passed
        assert "PermissionError" in outcome.why
        with pytest.raises(TimeoutError):
            server.accept()
    assert not passes("import socket; socket.socket(socket.AF_UNIX)").passed


def test_it_can_neither_signal_nor_limit_its_parent():
    assert "PermissionError" in passes("import os; os.kill(os.getppid(), 9)").why
    assert (
        "PermissionError"
        in passes("import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (1, 1))").why
    )


def test_an_honest_program_passes_with_files_threads_and_numpy_of_its_own():
    program = """
import math, re, random, collections, itertools, hashlib, threading, tempfile
open('note', 'w').write('x')
assert open('note').read() == 'x'
with tempfile.TemporaryFile() as file:
    file.write(b'y')
seen = []
thread = threading.Thread(target=seen.append, args=(1,))
thread.start(); thread.join()
assert seen == [1]
assert hashlib.md5(b'').hexdigest().startswith('d41d')
"""
    assert passes(program).passed, passes(program).why
    assert passes("import numpy; assert numpy.arange(3).sum() == 3", memory_mib=2048).passed


def test_the_environment_is_not_handed_down(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    assert passes("import os; assert 'SECRET_TOKEN' not in os.environ").passed
    assert "SECRET_TOKEN" in os.environ


def test_what_a_failing_program_says_is_cut():
    assert len(passes("raise ValueError('x' * 10**6)").why) <= 2000
