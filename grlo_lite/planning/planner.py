"""Does a recipe fit on a card, and how long does it take. No torch; docs/planner.md has the method."""

import bisect
from collections.abc import Callable
from dataclasses import dataclass

from grlo_lite.errors import BadInput
from grlo_lite.generation.engine_table import WORTH_FOLDING
from grlo_lite.models import backends
from grlo_lite.models.scoring_budget import CPU_TOKENS, LEAST_TOKENS
from grlo_lite.planning import cards as cards_module
from grlo_lite.planning import memory, timing
from grlo_lite.planning.cards import Card
from grlo_lite.planning.memory import Models, Sizes
from grlo_lite.recipe.loading import changed
from grlo_lite.recipe.schema import Recipe

MICRO_BATCHES = (8, 4, 3, 2, 1)  # that `optimizer.micro_batch: auto` tries on a GPU


REWARD_TOKENS = (32768, 16384, 8192, 4096, 2048, LEAST_TOKENS)  # that `reward.tokens_per_batch: auto` tries there


@dataclass(frozen=True)
class Plan:
    """What a recipe needs on a card at its longest prompt and completion, in bytes by phase and part, and seconds a
    step.
    """

    vram: dict[str, dict[str, int]]
    peak_phase: str
    peak_bytes: int
    fits: bool
    micro_batch: int
    rows_at_once: int
    reward_tokens: int  # a scoring forward, 0 where no reward model scores
    engine: str  # of the rollout
    max_completion_tokens: int  # the longest rollout.max_tokens that fits, 0 where none does
    seconds: dict[str, float]  # by phase
    closing: float  # seconds of the measurement that ends the run
    steps: int
    usd_per_hour: float | None

    @property
    def hours(self) -> float:
        return (self.steps * sum(self.seconds.values()) + self.closing) / 3600

    @property
    def usd(self) -> float | None:
        return self.hours * self.usd_per_hour if self.usd_per_hour else None


def plan(recipe: Recipe, card: Card) -> Plan:
    """The plan of a recipe on a card. Raises BadInput where a model's shape is not at hand."""
    models = memory.models(recipe)
    sizes = _sizes(recipe, models, card)
    vram = memory.vram(recipe, models, card, sizes)
    totals = {phase: sum(parts.values()) for phase, parts in vram.items()}
    peak = max(totals, key=lambda phase: totals[phase])
    return Plan(
        vram=vram,
        peak_phase=peak,
        peak_bytes=totals[peak],
        fits=totals[peak] <= card.usable,
        **vars(sizes),
        max_completion_tokens=_longest(recipe, models, card, sizes.engine),
        seconds=timing.seconds(recipe, models, card, sizes),
        closing=timing.measurement_seconds(recipe, models, card, sizes.engine),
        steps=recipe.budget.steps,
        usd_per_hour=recipe.budget.usd_per_hour or cards_module.price(card),
    )


def _sizes(recipe: Recipe, models: Models, card: Card) -> Sizes:
    """The largest sizes that fit, the smallest there are where none does; on a CPU what training takes there."""
    rows, engine = _rollout_sizes(recipe, models, card)
    an_update = recipe.rollout.batch // recipe.algorithm.updates_per_rollout
    micro, tokens = recipe.optimizer.micro_batch, recipe.reward.tokens_per_batch
    if micro == "auto":
        divisors = [n for n in MICRO_BATCHES if an_update % n == 0]
        fitting = [n for n in divisors if _fits(recipe, models, card, "update", Sizes(1, n, 1, engine))]
        micro = (fitting or [1])[0] if card.cuda else an_update
    if tokens == "auto":
        fitting = [n for n in REWARD_TOKENS if _fits(recipe, models, card, "reward", Sizes(1, 1, n, engine))]
        tokens = (fitting or [LEAST_TOKENS])[0] if card.cuda else CPU_TOKENS
    if not models.judges:
        return Sizes(rows, micro, 0, engine)
    longest = min(recipe.reward.max_tokens, recipe.prompts.max_tokens + recipe.rollout.max_tokens)
    return Sizes(rows, micro, max(tokens, longest) if card.cuda else tokens, engine)


def _rollout_sizes(recipe: Recipe, models: Models, card: Card) -> tuple[int, str]:
    """How many completions are decoded together, and by which engine: the one that a run would take here.

    `generate` takes the whole batch, and half of it where memory runs out; the kit's engines take as many as fit, and
    `folded` gives up its dense copy where that leaves room for too few.
    """
    engine = planned_engine(recipe, card)
    batch, wanted = recipe.rollout.batch, recipe.rollout.rows_at_once
    most = batch if wanted == "auto" else min(wanted, batch)

    def fits(rows: int, engine: str) -> bool:
        return _fits(recipe, models, card, "rollout", Sizes(rows, 1, 1, engine))

    if engine == "fast_inference":
        return min(batch, max(1, memory.vllm_rows(recipe, models.policy, card))), engine
    if engine in memory.WHOLE_BATCH:
        rows = batch
        while card.cuda and rows > 1 and not fits(rows, engine):
            rows //= 2
        return rows, engine
    if not card.cuda:
        return most, engine
    if engine == "vllm":
        return max(1, _most(most, lambda rows: fits(rows, engine))), engine
    with_copy = _most(most, lambda rows: fits(rows, "folded")) if engine == "folded" else 0
    if with_copy >= min(WORTH_FOLDING, most):
        return with_copy, "folded"
    return max(1, _most(most, lambda rows: fits(rows, "compact"))), "compact"


def planned_engine(recipe: Recipe, card: Card) -> str:
    """What a run would take; what the recipe names itself need not be installed where it is planned."""
    backend = backends.backend_of(recipe, card) if recipe.backend == "auto" else recipe.backend
    wanted = recipe.rollout.engine
    if wanted == "vllm" or (wanted == "fast_inference" and backend == "unsloth" and card.cuda):
        return wanted
    engine = backends.chosen_engine(wanted, backend, recipe.model.quantization, card)
    return "unsloth" if (engine, backend) == ("generate", "unsloth") else engine


def _most(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `most` that fits, 0 where none does; what fits, fits for every smaller number."""
    return bisect.bisect_left(range(1, most + 1), True, key=lambda n: not fits(n))


def _fits(recipe: Recipe, models: Models, card: Card, phase: str, sizes: Sizes) -> bool:
    """Whether a phase fits; the critic's passes belong to the update."""
    vram = memory.vram(recipe, models, card, sizes)
    phases = ("critic", "update") if phase == "update" and "critic" in vram else (phase,)
    return all(sum(vram[each].values()) <= card.usable for each in phases)


def _longest(recipe: Recipe, models: Models, card: Card, engine: str) -> int:
    micro = 1 if recipe.optimizer.micro_batch == "auto" else recipe.optimizer.micro_batch
    smallest = Sizes(1, micro, 1024, "compact" if engine == "folded" else engine)

    def fits(blocks: int) -> bool:
        longer = changed(recipe, {"rollout.max_tokens": 64 * blocks})
        return all(_fits(longer, models, card, phase, smallest) for phase in memory.PHASES)

    return 64 * _most(512, fits)


def resolved(recipe: Recipe, planned: Plan) -> Recipe:
    """The recipe with its `auto` sizes replaced by the plan's."""
    sizes = {"optimizer.micro_batch": planned.micro_batch}
    sizes |= {"reward.tokens_per_batch": planned.reward_tokens} if planned.reward_tokens else {}
    now = recipe.model_dump()
    return changed(recipe, {k: v for k, v in sizes.items() if now[k.split(".")[0]][k.split(".")[1]] == "auto"})


def plan_if_known(recipe: Recipe, card: Card) -> Plan | None:
    """The plan of a recipe on a card; None where a model's shape is not at hand."""
    try:
        memory.models(recipe)
    except BadInput:
        return None
    return plan(recipe, card)
