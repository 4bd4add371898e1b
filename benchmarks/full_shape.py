"""`python benchmarks/full_shape.py`: the folder of this name, whose __main__ says what it measures."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.full_shape.__main__ import main
from benchmarks.full_shape.random_models import (
    ANSWERER,
    END,
    SPECIAL,
    ending,
    length_of,
    limits,
    prompt_words,
    random_prompts,
    tokenizer,
)

__all__ = [
    "ANSWERER",
    "END",
    "SPECIAL",
    "ending",
    "length_of",
    "limits",
    "main",
    "prompt_words",
    "random_prompts",
    "tokenizer",
]

if __name__ == "__main__":
    sys.exit(main())
