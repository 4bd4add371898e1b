"""A child process that runs a model's Python with little in reach: no fork, no network, no file outside its folder.

`passes` starts this very file as the child. The child gives up its capabilities, limits itself (rlimits), closes the
file system but for reading Python and writing its own temporary folder (Landlock), and bars the system calls that
make processes and sockets, signal or trace others, or change what Landlock does not cover (seccomp); then it runs
the program. All of this needs Linux 5.13 on x86-64 or arm64, no root, and holds for everything the program starts.

What it does not do: it is no virtual machine. A hole in the kernel is a hole in it, files that Python itself may read
(its library) can be read, and a program can fill its folder with files of 16 MiB until its time is up. Imports only
the standard library, for the child must start quickly and without the package's dependencies.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys
from pathlib import Path
from typing import NamedTuple

FILE_BYTES = 16 * 2**20


OPEN_FILES = 64


REPORT_BYTES = 2000  # what a program may say about its failure; less than a pipe holds, so that a report never blocks


# prctl and Landlock, from the kernel's headers; the Landlock system calls have the same numbers everywhere
NO_NEW_PRIVILEGES, SET_SECCOMP, SECCOMP_FILTER = 38, 22, 2


CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446


ALL_FILE_RIGHTS = (1 << 13) - 1  # what the first version of Landlock knows


EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8


FILE_ONLY = EXECUTE | WRITE_FILE | READ_FILE


# System calls by number. `clone` may make threads and `prlimit64` may look at the process itself; the rest is refused.
# Truncating by name and changing modes, owners, times and attributes are here since Landlock does not cover them.
CALLS = {
    "x86_64": {
        "audit": 0xC000003E,
        "clone": 56,
        "prlimit64": 302,
        "refused": (
            *(57, 58, 41, 62, 200, 234, 129, 297, 424, 434, 101, 310, 311, 425),  # processes, sockets, signals, tracing
            *(165, 166, 272, 308, 155, 161, 321, 248, 249, 250, 298, 29, 68, 64, 76),  # mounts, keys, shared memory
            *(90, 91, 268, 452, 92, 93, 94, 260, 188, 189, 190, 197, 198, 199, 132, 235, 261, 280),
        ),
    },
    "aarch64": {
        "audit": 0xC00000B7,
        "clone": 220,
        "prlimit64": 261,
        "refused": (
            *(198, 129, 130, 131, 138, 240, 424, 434, 117, 270, 271, 425),
            *(40, 39, 97, 268, 41, 51, 280, 217, 218, 219, 241, 194, 186, 190, 45),
            *(52, 53, 452, 54, 55, 5, 6, 7, 14, 15, 16, 88),
        ),
    },
}


CLONE3 = 435  # refused as "not implemented", upon which the C library falls back on `clone`


CLONE_THREAD = 0x10000


class Execution(NamedTuple):
    """Whether a program ran to its end, and if not, why."""

    passed: bool
    why: str


def unavailable() -> str:
    """Why programs cannot be confined on this machine; empty where they can."""
    if sys.platform != "linux" or platform.machine() not in CALLS:
        return f"code is confined on Linux x86-64 and arm64 only, and this is {sys.platform} {platform.machine()}"
    if ctypes.CDLL(None).syscall(CREATE_RULESET, None, 0, 1) < 1:
        return "this kernel has no Landlock (Linux 5.13 or newer, with landlock among its security modules)"
    return ""


def passes(program: str, seconds: float = 10.0, memory_mib: int = 1024) -> Execution:
    """Runs a Python program to its end in a confined child; passed where its last line was reached without an error.

    Exiting early does not pass, with whatever code. The limits are wall time and address space.
    """
    import secrets  # these three here: they would be half of what a child takes to start
    import subprocess
    import tempfile

    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="grlo-") as folder:
        reading, writing = os.pipe()
        order = {
            "program": program,
            "token": token,
            "seconds": seconds,
            "memory": memory_mib * 2**20,
            "report": writing,
        }
        with subprocess.Popen(
            [sys.executable, "-I", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"HOME": folder, "TMPDIR": folder, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
            pass_fds=(writing,),
            start_new_session=True,
        ) as child:
            os.close(writing)
            try:
                child.communicate(json.dumps(order).encode(), timeout=seconds)
            except subprocess.TimeoutExpired:
                child.kill()
                return Execution(False, f"still running after {seconds:g} s")
            finally:
                report = os.read(reading, 4096) if child.poll() is not None else b""
                os.close(reading)
    said = report.decode(errors="replace")
    if said == token:
        return Execution(True, "all tests passed")
    return Execution(False, said.replace(token, "") or f"ended early with exit code {child.returncode}")


def _child() -> None:
    order = json.loads(sys.stdin.read())
    token, report = order["token"], order["report"]
    _limit(order["seconds"], order["memory"])
    _confine(Path.cwd())
    try:
        exec(compile(order["program"], "<answer>", "exec"), {"__name__": "__main__"})
    except BaseException as error:  # noqa: BLE001 - whatever the program raises, SystemExit too, is its failure
        said = f"{type(error).__name__}: {error}"
        os.write(report, said.encode(errors="replace")[:REPORT_BYTES])
        os._exit(1)
    os.write(report, token.encode())
    os._exit(0)


def _limit(seconds: float, memory: int) -> None:
    for what, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, int(seconds) + 1),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (limit, limit))


def _confine(folder: Path) -> None:
    """Bars this process, for good, from what the module's first lines name. Raises OSError where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)

    def must(result: int, what: str) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), what)
        return result

    # No capabilities, none regained by a set-uid program: as root, limits could be raised again
    must(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no_new_privs")
    must(libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)), "capset")

    rules = must(libc.syscall(CREATE_RULESET, struct.pack("Q", ALL_FILE_RIGHTS), 8, 0), "landlock_create_ruleset")
    python = {Path(p).resolve() for p in (sys.base_prefix, sys.prefix, "/usr", "/lib", "/lib64")}
    allowed = dict.fromkeys(python, EXECUTE | READ_FILE | READ_DIR)
    allowed |= dict.fromkeys(map(Path, ("/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/zero")), READ_FILE)
    allowed |= {Path("/dev/null"): READ_FILE | WRITE_FILE, folder: ALL_FILE_RIGHTS}
    for path, rights in allowed.items():
        if not path.exists():
            continue
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        mask = rights if path.is_dir() else rights & FILE_ONLY
        must(libc.syscall(ADD_RULE, rules, 1, struct.pack("=Qi", mask, descriptor), 0), f"landlock_add_rule {path}")
        os.close(descriptor)
    must(libc.syscall(RESTRICT_SELF, rules, 0), "landlock_restrict_self")
    os.close(rules)

    code = _filter(CALLS[platform.machine()])
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    must(libc.prctl(SET_SECCOMP, SECCOMP_FILTER, ctypes.c_char_p(program), 0, 0), "seccomp")


def _filter(calls: dict) -> bytes:
    """The seccomp program: classic BPF over the call's number (offset 0), architecture (4) and first argument (16)."""
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill = 0x7FFF0000, 0x80000000
    refuse, not_implemented = 0x00050000 | 1, 0x00050000 | 38  # errno EPERM, ENOSYS

    def line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("HBBI", code, if_true, if_false, value)

    lines = [line(load, 4), line(equal, calls["audit"], 1, 0), line(give, kill), line(load, 0)]
    lines += [line(at_least, 0x40000000, 0, 1), line(give, refuse)]  # x86-64's second set of numbers
    for number in calls["refused"]:
        lines += [line(equal, number, 0, 1), line(give, refuse)]
    lines += [line(equal, CLONE3, 0, 1), line(give, not_implemented)]
    lines += [line(equal, calls["clone"], 0, 4), line(load, 16), line(any_bit, CLONE_THREAD, 1, 0)]
    lines += [line(give, refuse), line(give, allow)]
    lines += [line(equal, calls["prlimit64"], 0, 3), line(load, 16), line(equal, 0, 1, 0), line(give, refuse)]
    return b"".join([*lines, line(give, allow)])


if __name__ == "__main__":
    _child()
