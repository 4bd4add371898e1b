"""Prompt sources to the rows a run asks: read, cleaned, decontaminated, split, ordered.

`sources` reads files and Hub data sets, `shapes` makes messages of their rows, `rows` mixes, splits and orders them,
`cleaning` drops what is empty, double or too long, `contamination` drops what a benchmark asks, and `similarity` says
how alike two texts are.
"""

from grlo_lite.models.chat_template import Messages
from grlo_lite.prompts.cleaning import Step, cleaned, steps_table
from grlo_lite.prompts.contamination import (
    SuiteSets,
    decontaminated,
    question_set,
    question_sets,
    unchecked_report,
    verdict,
)
from grlo_lite.prompts.rows import load, ordered, prompt_hash, split, write
from grlo_lite.prompts.sources import Unreachable, hub_answers, on_the_hub
