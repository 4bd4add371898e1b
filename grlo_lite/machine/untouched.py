"""A library that settles the whole process to its taste, kept from it."""

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def random_state() -> dict[str, Any]:
    """The state of every random number generator that a run draws from."""
    import numpy as np
    import torch

    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: dict[str, Any]) -> None:
    import numpy as np
    import torch

    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def untouched(environment: dict[str, str]) -> Iterator[None]:
    """Inside, the environment has these words too, and code may seed, set and replace what it likes; outside, random
    state, number of threads, `torch.set_num_threads`, default dtype, Ctrl-C's handlers and environment are as they
    were.
    """
    import torch

    drawn, words = random_state(), dict(os.environ)
    threads, set_threads, dtype = torch.get_num_threads(), torch.set_num_threads, torch.get_default_dtype()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    os.environ.update(environment)
    try:
        yield
    finally:
        for word in os.environ.keys() - words.keys():
            del os.environ[word]
        os.environ.update(words)
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        torch.set_num_threads = set_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        restore_random_state(drawn)
