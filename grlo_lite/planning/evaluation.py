"""What an evaluation takes, by task and arm: questions, tokens, seconds, from FLOPs, bytes and what a card reaches. No
torch; see docs/evaluation.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil

from grlo_lite.evaluation.tasks.task import Task
from grlo_lite.planning import timing
from grlo_lite.planning.cards import Card
from grlo_lite.planning.model_shapes import Shape
from grlo_lite.planning.timing import COMPLETION_SHARE
from grlo_lite.recipe.loading import changed
from grlo_lite.recipe.schema import Recipe
from grlo_lite.wording import aligned, duration

PROMPT_TOKENS = 200  # assumed of a question in the chat template where its text is not at hand
PLAIN_TOKENS = 500  # assumed of one behind worked examples
MICROCOSM_TOKENS = 20  # counted of the microcosm's questions
CPU_BUDGET, CUDA_BUDGET = 65_536, 131_072  # padded tokens of answers that are decoded together
LOGIT_BYTES = 2**30  # that a forward pass over whole texts may take


@dataclass(frozen=True)
class Load:
    """What one arm of one task has to do. Tokens are sums over the questions; `longest` is an answer's limit."""

    task: str
    arm: str
    questions: int
    prompt_tokens: float = 0.0
    answers: int = 0
    answer_tokens: float = 0.0
    longest: int = 0
    scored_tokens: float = 0.0

    @property
    def tokens(self) -> float:
        return self.prompt_tokens + self.answer_tokens + self.scored_tokens

    def of(self, questions: int) -> "Load":
        """The same with at most so many questions."""
        if questions >= self.questions:
            return self
        share = questions / self.questions
        return replace(
            self, questions=questions, answers=round(self.answers * share), prompt_tokens=self.prompt_tokens * share,
            answer_tokens=self.answer_tokens * share, scored_tokens=self.scored_tokens * share,
        )  # fmt: skip


def suite_loads(tasks: Iterable[Task], limit: int | None) -> list[Load]:
    """What a suite takes of base, tuned and plain base, by what is assumed of questions that are not at hand."""
    loads = []
    for task in tasks:
        there = task.size or 0
        wanted = limit if limit is not None else task.limit
        asked = there if wanted is None else min(there, wanted)
        microcosm = task.name.startswith("microcosm")
        for arm in ("base", "tuned", "base_plain")[: 2 if task.judged is None else 3]:
            plain = arm == "base_plain"
            prompt = MICROCOSM_TOKENS if microcosm else PLAIN_TOKENS if plain else PROMPT_TOKENS
            answers = asked * task.samples
            tokens = COMPLETION_SHARE * task.max_tokens * answers
            loads.append(Load(task.name, arm, asked, prompt * asked, answers, tokens, task.max_tokens))
    return loads


def seconds(load: Load, recipe: Recipe, shape: Shape, card: Card) -> float:
    """Seconds of an arm's answers to a task by the kit's decoder and its dense copy of the weights, a batch to its
    longest row, and of whole texts in one forward pass each.
    """
    return _answering(load, recipe, shape, card) + _scoring(load, recipe, shape, card)


def _answering(load: Load, recipe: Recipe, shape: Shape, card: Card) -> float:
    if not load.answers:
        return 0.0
    prompt, mean = load.prompt_tokens / load.questions, load.answer_tokens / load.answers
    budget = CUDA_BUDGET if card.cuda else CPU_BUDGET
    rows = max(1, min(load.answers, int(budget / (prompt + load.longest))))
    batches = ceil(load.answers / rows)
    steps = batches * min(load.longest, _longest_of(rows, mean, load.longest))
    like = {"rollout.max_tokens": max(1, round(2 * mean)), "prompts.source": "mine.jsonl"}
    like |= {"prompts.max_tokens": max(1, round(prompt / timing.PROMPT_SHARE))}
    asked = changed(recipe, like)
    prefill = timing.forward(asked, shape, card, load.prompt_tokens, prompt, adapted=False).seconds(card)
    alive = load.answer_tokens / steps
    a_token = timing.token_seconds(asked, shape, card, "folded", alive)
    return _copying(recipe, shape, card) + prefill + steps * a_token


def _longest_of(rows: int, mean: float, limit: int) -> float:
    """Tokens of a batch's longest answer: its limit, where answers are as long as half of it and one among a few
    reaches it; lengths are taken to be spread evenly from nothing to twice the mean.
    """
    return min(limit, 2 * mean * rows / (rows + 1)) if rows > 1 else mean


def _copying(recipe: Recipe, shape: Shape, card: Card) -> float:
    """Seconds of a dense copy of the linear layers."""
    written = card.float_bytes * shape.linear_parameters / card.activation_bytes_a_second
    return written + timing.weights_seconds(recipe.model.quantization, shape, card)


def _scoring(load: Load, recipe: Recipe, shape: Shape, card: Card) -> float:
    if not load.scored_tokens:
        return 0.0
    a_text = load.scored_tokens / load.questions
    work = timing.forward(recipe, shape, card, load.scored_tokens, a_text, adapted=False)
    logits = load.scored_tokens * shape.vocabulary
    head = 2 * logits * shape.hidden / card.flops + 5 * 4 * logits / card.activation_bytes_a_second
    passes = ceil(4 * logits / LOGIT_BYTES)
    launches = passes * shape.layers * card.dense_layer_seconds
    return _copying(recipe, shape, card) + timing.combined(card, work.seconds(card) + head, launches)


def text(loads: list[Load], recipe: Recipe, shape: Shape, card: Card, usd_per_hour: float | None) -> str:
    """The plan of an evaluation as a table by task and arm, its sum, and what a limit would make of it."""
    taken = [(load, seconds(load, recipe, shape, card)) for load in loads]
    rows: list[tuple[str, ...]] = [("task", "arm", "questions", "answers", "tokens", "time", "$")]
    for load, took in taken:
        name = (load.task, load.arm.replace("_", " "), f"{load.questions:,}", f"{load.answers:,}")
        rows.append((*name, f"{load.tokens:,.0f}", duration(took), _dollars(took, usd_per_hour)))
    total = sum(took for _, took in taken)
    tokens = sum(load.tokens for load, _ in taken)
    rows.append(("together", "", "", "", f"{tokens:,.0f}", duration(total), _dollars(total, usd_per_hour)))
    lines = aligned(rows, left=(0, 1))
    most = max((load.questions for load in loads), default=0)
    for limit in (limit for limit in (50, 200, 500) if limit < most):
        less = sum(seconds(load.of(limit), recipe, shape, card) for load in loads)
        lines.append(f"--limit {limit}: {duration(less)}{_priced(less, usd_per_hour)}")
    how = f"rates measured by --probe, {card.probed}" if card.measured else "rates assumed, nothing measured"
    return "\n".join([*lines, f"{card.title}; {how}; judging is not in it"])


def total_seconds(loads: list[Load], recipe: Recipe, shape: Shape, card: Card) -> float:
    return sum(seconds(load, recipe, shape, card) for load in loads)


def _dollars(took: float, usd_per_hour: float | None) -> str:
    return "" if usd_per_hour is None else f"{took / 3600 * usd_per_hour:.2f}"


def _priced(took: float, usd_per_hour: float | None) -> str:
    return "" if usd_per_hour is None else f", ${_dollars(took, usd_per_hour)}"
