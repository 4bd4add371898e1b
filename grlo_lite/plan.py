"""Does a recipe fit on a card, how long does it take, what does it cost: before anything is downloaded. No torch.

`python -m grlo_lite.plan [RECIPE] [section.key=value …] [--gpu NAME]`; docs/planner.md has the method.
"""

import argparse
import bisect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from grlo_lite import hardware, memory, policy, timing
from grlo_lite import recipe as recipes
from grlo_lite.cli import DOES_NOT_FIT, run_command, settle_libraries
from grlo_lite.errors import BadInput
from grlo_lite.hardware import GIB, Card
from grlo_lite.memory import Models, Sizes
from grlo_lite.pace import Expected, duration
from grlo_lite.recipe import Recipe

FEW_ROWS = 16  # with room for fewer, the rollout engine does without its dense copy
MICRO_BATCHES = (8, 4, 3, 2, 1)  # that `auto` tries, on a GPU
REWARD_TOKENS = (32768, 16384, 8192, 4096, 2048, 1024)
SMALLER_JUDGES = ("Skywork/Skywork-Reward-V2-Qwen3-1.7B", "Skywork/Skywork-Reward-V2-Qwen3-0.6B")
SMALLER_POLICIES = {
    "Qwen/Qwen3-1.7B-Base": "ea980cb0a6c2ae4b936e82123acc929f1cec04c1",
    "Qwen/Qwen3-0.6B-Base": "da87bfb608c14b7cf20ba1ce41287e8de496c0cd",
}


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
    reward_tokens: int
    engine: str  # of the rollout
    max_completion_tokens: int  # the longest rollout.max_tokens that fits, 0 where none does
    seconds: dict[str, float]
    hours: float
    usd: float | None


def plan(recipe: Recipe, card: Card) -> Plan:
    """The plan of a recipe on a card. Raises BadInput where a model's shape is not at hand."""
    models = memory.models(recipe)
    sizes = _sizes(recipe, models, card)
    vram = memory.vram(recipe, models, card, sizes)
    totals = {phase: sum(parts.values()) for phase, parts in vram.items()}
    peak = max(totals, key=lambda phase: totals[phase])
    seconds = timing.seconds(recipe, models, card, sizes)
    whole = recipe.budget.steps * sum(seconds.values()) + timing.measurement_seconds(recipe, models, card)
    price = recipe.budget.usd_per_hour or hardware.price(card)
    return Plan(
        vram=vram,
        peak_phase=peak,
        peak_bytes=totals[peak],
        fits=totals[peak] <= card.usable,
        micro_batch=sizes.micro_batch,
        rows_at_once=sizes.rows_at_once,
        reward_tokens=sizes.reward_tokens,
        engine=sizes.engine,
        max_completion_tokens=_longest(recipe, models, card, sizes.engine),
        seconds=seconds,
        hours=whole / 3600,
        usd=whole / 3600 * price if price else None,
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
        tokens = (fitting or [1024])[0] if card.cuda else 8192
    longest = min(recipe.reward.max_tokens, recipe.prompts.max_tokens + recipe.rollout.max_tokens)
    return Sizes(rows, micro, max(tokens, longest) if card.cuda else tokens, engine)


def _rollout_sizes(recipe: Recipe, models: Models, card: Card) -> tuple[int, str]:
    """How many completions are decoded together, and by which engine: the one that a run would take here.

    `generate` takes the whole batch, and half of it where memory runs out; the kit's engines take as many as fit, and
    `folded` gives up its dense copy where that leaves room for too few.
    """
    engine = _engine(recipe, card)
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
    with_copy = _most(most, lambda rows: fits(rows, "folded")) if engine == "folded" else 0
    if with_copy >= min(FEW_ROWS, most):
        return with_copy, "folded"
    return max(1, _most(most, lambda rows: fits(rows, "compact"))), "compact"


def _engine(recipe: Recipe, card: Card) -> str:
    """What a run would take; what the recipe names itself need not be installed where it is planned."""
    backend = policy.chosen_backend("auto", card) if recipe.backend == "auto" else recipe.backend
    wanted = recipe.rollout.engine
    if wanted == "fast_inference" and backend == "unsloth" and card.cuda:
        return wanted
    engine = policy.chosen_engine(wanted, backend, recipe.model.quantization, card)
    return "unsloth" if (engine, backend) == ("generate", "unsloth") else engine


def _most(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `most` that fits, 0 where none does; what fits, fits for every smaller number."""
    return bisect.bisect_left(range(1, most + 1), True, key=lambda n: not fits(n))


def _fits(recipe: Recipe, models: Models, card: Card, phase: str, sizes: Sizes) -> bool:
    return sum(memory.vram(recipe, models, card, sizes)[phase].values()) <= card.usable


def _longest(recipe: Recipe, models: Models, card: Card, engine: str) -> int:
    micro = 1 if recipe.optimizer.micro_batch == "auto" else recipe.optimizer.micro_batch
    smallest = Sizes(1, micro, 1024, "compact" if engine == "folded" else engine)
    return 64 * _most(
        512, lambda n: _peak(_changed(recipe, {"rollout.max_tokens": 64 * n}), models, card, smallest) <= card.usable
    )


def _peak(recipe: Recipe, models: Models, card: Card, sizes: Sizes) -> int:
    return max(sum(parts.values()) for parts in memory.vram(recipe, models, card, sizes).values())


def cheapest_change(recipe: Recipe, card: Card) -> str | None:
    """The overrides, as `section.key=value …`, that make a recipe fit and change least of what is learnt, beside sizes
    as large as fit with them; None where it fits, or where nothing makes it fit.
    """
    if plan(recipe, card).fits:
        return None
    sizes = _smaller_sizes(recipe, card)
    smallest = {key: values[-1] for key, values in sizes.items()}

    def fits(changes: dict[str, Any]) -> bool:
        return plan(_changed(recipe, changes), card).fits

    for key, values in sizes.items():
        for value in values:
            if fits({key: value}):
                return _overrides({key: value})
    gathered: dict[str, Any] = {}
    for change in ({}, *_changes(recipe)):
        for learnt in (change, gathered | change):
            if fits(smallest | learnt):
                return _overrides(_no_smaller_than_needed(sizes, learnt, fits))
        gathered |= change
    return None


def _overrides(changes: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in changes.items())


def _no_smaller_than_needed(
    sizes: dict[str, list[Any]], learnt: dict[str, Any], fits: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Changes that fit with the smallest sizes, without those that can be left out, the last first, and with each size
    as it was, or as large as fits.
    """
    smallest = {key: values[-1] for key, values in sizes.items()}
    for key in reversed(list(learnt)):
        together = {key.replace(".revision", ".name"), key.replace(".name", ".revision")}  # a model and its commit
        without = {k: v for k, v in learnt.items() if k not in together}
        if fits(smallest | without):
            learnt = without
    chosen = dict(smallest)
    for key, values in sizes.items():
        others = {k: v for k, v in chosen.items() if k != key}
        if fits(others | learnt):
            chosen = others
            continue
        chosen[key] = next(value for value in values if fits(others | {key: value} | learnt))
    return chosen | learnt


def _smaller_sizes(recipe: Recipe, card: Card) -> dict[str, list[Any]]:
    """What a recipe says itself and could say smaller, with the same result in more time; from large to small."""
    sizes: dict[str, list[Any]] = {}
    an_update, micro = recipe.rollout.batch // recipe.algorithm.updates_per_rollout, recipe.optimizer.micro_batch
    if micro != "auto":
        sizes["optimizer.micro_batch"] = [n for n in range(micro - 1, 0, -1) if an_update % n == 0]
    if recipe.reward.tokens_per_batch != "auto":
        wanted = recipe.reward.tokens_per_batch
        sizes["reward.tokens_per_batch"] = [n for n in REWARD_TOKENS if n < wanted]
    if recipe.optimizer.gradient_checkpointing is False:
        sizes["optimizer.gradient_checkpointing"] = [True]
    if _engine(recipe, card) == "fast_inference":
        sizes["rollout.vllm_memory"] = [n / 20 for n in range(19, 0, -1) if n / 20 < recipe.rollout.vllm_memory]
    elif recipe.rollout.engine == "generate" and recipe.backend == "transformers":
        sizes["rollout.engine"] = ["compact"]
    return {key: values for key, values in sizes.items() if values}


def _changes(recipe: Recipe) -> list[dict[str, Any]]:
    """From what changes least of what is learnt to another model; only what differs from the recipe."""
    ladder = [
        {"optimizer.name": "adamw_8bit"},
        {"model.quantization": "nf4"},
        {"reward.quantization": "nf4"},
        *({"rollout.max_tokens": n} for n in (2048, 1024, 512) if n < recipe.rollout.max_tokens),
        {"prompts.max_tokens": min(512, recipe.prompts.max_tokens)},
        *({"reward.name": name, "reward.revision": "main"} for name in SMALLER_JUDGES),
        *({"model.name": name, "model.revision": commit} for name, commit in SMALLER_POLICIES.items()),
    ]
    now = recipe.model_dump()
    different = [{k: v for k, v in c.items() if now[k.split(".")[0]][k.split(".")[1]] != v} for c in ladder]
    return [change for change in different if change and not set(change) <= {"model.revision", "reward.revision"}]


def _changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    for key, value in changes.items():
        section, name = key.split(".")
        recipe = recipe.model_copy(update={section: getattr(recipe, section).model_copy(update={name: value})})
    return recipe


def resolved(recipe: Recipe, planned: Plan) -> Recipe:
    """The recipe with its `auto` sizes replaced by the plan's."""
    sizes = {"optimizer.micro_batch": planned.micro_batch, "reward.tokens_per_batch": planned.reward_tokens}
    now = recipe.model_dump()
    return _changed(recipe, {k: v for k, v in sizes.items() if now[k.split(".")[0]][k.split(".")[1]] == "auto"})


def text(recipe: Recipe, card: Card, planned: Plan) -> str:
    """The plan as a table of GiB by phase and part, and what follows from it."""
    shown = [part for part in memory.PARTS if any(parts.get(part) for parts in planned.vram.values())]
    lines = [f"{'GiB':20}" + "".join(f"{phase:>10}" for phase in memory.PHASES)]
    for part in shown:
        lines.append(f"{part:20}" + "".join(f"{planned.vram[p].get(part, 0) / GIB:10.2f}" for p in memory.PHASES))
    totals = [sum(planned.vram[phase].values()) / GIB for phase in memory.PHASES]
    lines.append(f"{'together':20}" + "".join(f"{total:10.2f}" for total in totals))
    how = "rates from data sheets, efficiencies assumed, nothing measured"
    if card.measured:
        how = f"rates measured by --probe, {card.probed}"
    a_step = ", ".join(f"{phase} {seconds:.3g}" for phase, seconds in planned.seconds.items())
    return "\n".join(
        [
            *lines,
            verdict(card, planned),
            f"sizes: {planned.rows_at_once} completions decoded together by `{planned.engine}`, "
            f"{planned.micro_batch} a backward pass, {planned.reward_tokens:,} tokens a scoring forward; completions "
            f"of {planned.max_completion_tokens:,} tokens would still fit",
            f"seconds a step: {a_step}; {recipe.budget.steps} steps: {cost(planned)} ({how})",
        ]
    )


def verdict(card: Card, planned: Plan) -> str:
    """Whether it fits, in a line."""
    fits = "fits" if planned.fits else "does not fit"
    return (
        f"{card.title}, {card.vram / GIB:.2f} GiB: {fits}; the peak is {planned.peak_bytes / GIB:.2f} GiB in the "
        f"{planned.peak_phase} phase"
    )


def cost(planned: Plan) -> str:
    """Time and dollars."""
    dollars = "" if planned.usd is None else f", ${planned.usd:.2f}"
    return f"{duration(3600 * planned.hours)}{dollars}"


def expected(recipe: Recipe, card: Card) -> Expected | None:
    """What a run's pace is held against; None where a model's shape is not at hand."""
    try:
        models = memory.models(recipe)
    except BadInput:
        return None
    sizes = _sizes(recipe, models, card)
    price = recipe.budget.usd_per_hour or hardware.price(card)
    closing = timing.measurement_seconds(recipe, models, card)
    peak = _peak(recipe, models, card, sizes) / GIB
    return Expected(timing.seconds(recipe, models, card, sizes), closing, price, peak)


def header(name: str, recipe: Recipe) -> str:
    """The line of numbers that heads a shipped recipe, on the card that it is for."""
    card = card_of(name)
    planned = plan(recipe, card)
    return f"# Planned on {card.title}: {planned.peak_bytes / GIB:.2f} GiB, {cost(planned)}."


def card_of(name: str) -> Card:
    """The card that a shipped recipe is for, by the number in its name."""
    cards = {"80gb": "a100-80", "48gb": "l40s", "24gb": "rtx4090", "16gb": "t4", "12gb": "VRAM=12", "8gb": "VRAM=8"}
    return next((hardware.card(card) for size, card in cards.items() if f"-{size}" in name), hardware.cpu_card())


@cache
def seen_card() -> Card | None:
    """The GPU that nvidia-smi sees here, without torch; None where there is none."""
    fields = "--query-gpu=name,memory.total,compute_cap"
    try:
        done = subprocess.run(
            ["nvidia-smi", fields, "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        name, mib, capability = (field.strip() for field in done.stdout.splitlines()[0].split(","))
        vram = int(0.98 * float(mib) * 2**20)
        card = hardware.recognized(name, vram, float(capability) >= 8)
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None
    return hardware.probed(card, name, vram)


def main(argv: list[str] | None = None) -> int:
    """Prints the plan; returns 3 where the recipe does not fit. Raises BadInput where the input cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m grlo_lite.plan", allow_abbrev=False, description="VRAM, hours and cost of a recipe on a GPU."
    )
    parser.add_argument("words", nargs="*", metavar="RECIPE | section.key=value")
    parser.add_argument("--gpu", help="a known card, or its memory as VRAM=24 (default: the one in this machine)")
    parser.add_argument("--probe", action="store_true", help="measure this machine first, for about a minute")
    parser.add_argument("--all", action="store_true", help="every shipped recipe on every known card, as a table")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.probe and (arguments.gpu or arguments.all):
        raise BadInput("--probe measures this machine; leave --gpu and --all out")
    if arguments.all:
        print(table())
        return 0
    overrides = [word for word in arguments.words if "=" in word]
    named = [word for word in arguments.words if "=" not in word]
    if len(named) > 1:
        raise BadInput(f"{named[1]!r} is a second recipe beside {named[0]!r}; name one, or --all for every shipped one")
    here = hardware.card(arguments.gpu) if arguments.gpu else seen_card()
    name = named[0] if named else hardware.recipe_for(here or hardware.cpu_card())
    recipe = recipes.load(name, overrides)
    if arguments.probe:
        here = _probed(recipe)
    if here is None:
        here = card_of(recipes.short_name(name))
        print(f"no GPU here and no --gpu: planned for {here.title}")
    planned = plan(recipe, here)
    print(f"recipe {recipes.short_name(name)}\n{text(recipe, here, planned)}")
    if planned.fits:
        return 0
    print(f"the cheapest change that fits: {cheapest_change(recipe, here) or 'none; choose a smaller recipe'}")
    return DOES_NOT_FIT


def _probed(recipe: Recipe) -> Card:
    """The device of this machine with what is measured now; the CPU where there is no GPU that PyTorch can use."""
    shape = memory.models(recipe).policy
    settle_libraries(offline=True)
    from grlo_lite import probe

    before = hardware.this_card()
    print(f"measuring {before.title}, for about a minute:", flush=True)
    print(f"filed in {probe.probe(recipe, before, shape)}", flush=True)
    return hardware.this_card()


def table() -> str:
    """Recipes by cards: peak GiB, hours and dollars, or a dash where it does not fit."""
    cards = hardware.known_cards().values()
    rows = [f"{'':24}" + "".join(f"{card.title:>30}" for card in cards)]
    for name in recipes.shipped():
        cells = []
        for card in cards:
            planned = plan(recipes.load(name, []), card)
            cells.append(f"{planned.peak_bytes / GIB:.1f} GiB, {cost(planned)}" if planned.fits else "–")
        rows.append(f"{name:24}" + "".join(f"{cell:>30}" for cell in cells))
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(run_command(main))
