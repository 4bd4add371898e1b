"""A plan as text."""

from grlo_lite.planning import memory
from grlo_lite.planning.cards import GIB, Card, known_cards
from grlo_lite.planning.planner import Plan, plan
from grlo_lite.planning.recipe_cards import card_of
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe.schema import Recipe
from grlo_lite.wording import duration


def text(recipe: Recipe, card: Card, planned: Plan) -> str:
    """The plan as a table of GiB by phase and part, and what follows from it."""
    shown = [part for part in memory.PARTS if any(parts.get(part) for parts in planned.vram.values())]
    lines = [f"{'GiB':20}" + "".join(f"{phase:>10}" for phase in planned.vram)]
    for part in shown:
        lines.append(f"{part:20}" + "".join(f"{planned.vram[p].get(part, 0) / GIB:10.2f}" for p in planned.vram))
    totals = [sum(parts.values()) / GIB for parts in planned.vram.values()]
    lines.append(f"{'together':20}" + "".join(f"{total:10.2f}" for total in totals))
    how = "rates from data sheets, efficiencies assumed, nothing measured"
    if card.measured:
        how = f"rates measured by --probe, {card.probed}"
    scoring = f"{planned.reward_tokens:,} tokens a scoring forward" if planned.reward_tokens else "no reward model"
    a_step = ", ".join(f"{phase} {seconds:.3g}" for phase, seconds in planned.seconds.items())
    return "\n".join(
        [
            *lines,
            verdict(card, planned),
            f"sizes: {planned.rows_at_once} completions decoded together by `{planned.engine}`, "
            f"{planned.micro_batch} a backward pass, {scoring}; completions "
            f"of {planned.max_completion_tokens:,} tokens would still fit",
            *sleeping(card, planned),
            f"seconds a step: {a_step}; {recipe.budget.steps} steps: {cost(planned)} ({how})",
        ]
    )


def sleeping(card: Card, planned: Plan) -> list[str]:
    """When vLLM is awake, and where its weights are while it is not; nothing under another engine."""
    if planned.engine != "vllm":
        return []
    size = f"{planned.vram['rollout']['vLLM weights'] / GIB:.2f} GiB"
    if not card.cuda:
        return [f"vLLM holds {size} of weights for the whole run: on a CPU it does not sleep"]
    return [
        f"vLLM is awake in the rollout alone; it sleeps while rewards and updates are computed, its {size} of weights "
        "in main memory and its cache given back"
    ]


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


def header(name: str, recipe: Recipe) -> str:
    """The line of numbers that heads a shipped recipe, on the card that it is for."""
    card = card_of(name)
    planned = plan(recipe, card)
    return f"# Planned on {card.title}: {planned.peak_bytes / GIB:.2f} GiB, {cost(planned)}."


def plans_table() -> str:
    """Recipes by cards: peak GiB, hours and dollars, or a dash where it does not fit."""
    cards, width = known_cards().values(), max(map(len, recipes.shipped()))
    rows = [f"{'':{width}}" + "".join(f"{card.title:>30}" for card in cards)]
    for name in recipes.shipped():
        cells = []
        for card in cards:
            planned = plan(recipes.load(name, []), card)
            cells.append(f"{planned.peak_bytes / GIB:.1f} GiB, {cost(planned)}" if planned.fits else "–")
        rows.append(f"{name:{width}}" + "".join(f"{cell:>30}" for cell in cells))
    return "\n".join(rows)
