"""What an evaluation takes, by task and arm: questions, tokens, seconds, from FLOPs, bytes and what a card reaches. No
torch; see docs/lm-eval.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from grlo_lite.evaluation.answering import arms_asked, text_of
from grlo_lite.evaluation.harness.evaluating import Prepared
from grlo_lite.evaluation.harness.loading import PREFIX
from grlo_lite.evaluation.tasks import suites
from grlo_lite.evaluation.tasks.task import Asked, Task
from grlo_lite.models import names
from grlo_lite.models.trained_adapter import Subject
from grlo_lite.planning import answer_lengths, this_machine, timing
from grlo_lite.planning.answer_lengths import Heard
from grlo_lite.planning.cards import Card, known_card, price
from grlo_lite.planning.model_shapes import Shape, shape_of, weight_bytes
from grlo_lite.planning.planner import Plan
from grlo_lite.planning.timing import COMPLETION_SHARE
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe.loading import changed
from grlo_lite.recipe.schema import Recipe
from grlo_lite.wording import aligned, duration

PROMPT_TOKENS = 200  # assumed of a question in the chat template where its text is not at hand
PLAIN_TOKENS = 500  # assumed of one behind worked examples
MICROCOSM_TOKENS = 20  # counted of the microcosm's questions
CPU_BUDGET, LEAST_BUDGET = 65_536, 4096  # padded tokens that are decoded together, as generation/answers.py has it
CACHE_SHARE = 0.6  # of the memory beside the weights and their copy, for their cache
CPU_COPY = 6  # times a pass over the weights that a dense copy takes on a CPU, in fresh memory: measured on two models
LOGIT_BYTES = 2**30  # that a forward pass over whole texts may take


@dataclass(frozen=True)
class Load:
    """What one arm of one task has to do. Tokens are sums over the questions; `longest` is an answer's limit, and
    `most` how long the longest becomes.
    """

    task: str
    arm: str
    questions: int
    prompt_tokens: float = 0.0
    answers: int = 0
    answer_tokens: float = 0.0
    longest: int = 0
    most: float = 0.0
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


@dataclass(frozen=True)
class Setting:
    """Where an evaluation runs: the recipe's precision, the policy's shape, the card, padded tokens decoded together
    (None: what suits the card), and what an hour costs.
    """

    recipe: Recipe
    shape: Shape
    card: Card
    budget: int | None = None
    usd_per_hour: float | None = None

    @property
    def free(self) -> int:
        """Bytes beside the quantized weights."""
        width, how = self.card.float_bytes, self.recipe.model.quantization
        return self.card.usable - self.card.context - weight_bytes(self.shape, how, width, width)

    @property
    def copy(self) -> int:
        """Bytes of the dense copy that answers are decoded with, on a GPU where that takes at most half of what is
        free.
        """
        size = self.card.float_bytes * self.shape.linear_parameters
        return size if not self.card.cuda or size <= self.free // 2 else 0

    @property
    def padded_tokens(self) -> int:
        """How many tokens are decoded together, prompt and answer."""
        if self.budget or not self.card.cuda:
            return self.budget or CPU_BUDGET
        left = CACHE_SHARE * (self.free - self.copy)
        return max(LEAST_BUDGET, int(left / self.shape.kv_bytes_a_token(self.card.float_bytes)))


def setting(recipe: Recipe, card: Card, budget: int | None = None) -> Setting:
    """Where runs of a recipe are evaluated. Raises BadInput where the policy's shape is not at hand."""
    usd = recipe.budget.usd_per_hour or price(card)
    return Setting(recipe, shape_of("model.name", recipe.model.name), card, budget, usd)


def setting_of(subject: Subject, card: str | None, budget: int | None) -> Setting:
    """Where a finished adapter is evaluated: on a known card by its name, else on what is here. Raises BadInput where
    the card or the base's shape is not known.
    """
    own = subject.run.recipe.is_file()
    recipe = recipes.load(str(subject.run.recipe) if own else "microcosm", [])
    recipe = changed(recipe, {"model.name": subject.base, "model.quantization": subject.quantization})
    here = known_card(card) if card else this_machine.seen_card() or this_machine.cpu_card(subject.cpu_dtype)
    return setting(recipe, here, budget)


def suite_loads(tasks: Iterable[Task], limit: int | None) -> list[Load]:
    """What a suite takes of base, tuned and plain base, by what is assumed of questions that are not at hand."""
    loads = []
    for task in tasks:
        there = task.size or 0
        wanted = limit if limit is not None else task.limit
        asked = there if wanted is None else min(there, wanted)
        for arm in arms_asked(task, ("base", "tuned", "base_plain")):
            prompt = PLAIN_TOKENS if arm == "base_plain" else PROMPT_TOKENS
            prompt = MICROCOSM_TOKENS if task.built_in else prompt
            load = Load(task.name, arm, asked, prompt * asked, longest=task.max_tokens)
            loads.append(_answered(load, asked * task.samples, {}))
    return loads


def own_loads(asked: Asked, tokenizer: Any, arms: tuple[str, ...], heard: Heard) -> list[Load]:
    """What the kit's own tasks take of each arm, their questions at hand; `heard` says how long answers are."""
    loads = []
    for task, questions in asked:
        for arm in arms_asked(task, arms):
            texts = [text_of(question, arm, tokenizer) for question in questions]
            prompts = sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
            load = Load(task.name, arm, len(questions), prompts, longest=task.max_tokens)
            loads.append(_answered(load, len(questions) * task.samples, heard))
    return loads


def harness_loads(prepared: Prepared, arms: tuple[str, ...], heard: Heard) -> list[Load]:
    """What lm-eval's tasks take of each arm."""
    loads = []
    for name in prepared.loaded.tasks:
        for arm in prepared.arms(name, arms):
            built = prepared.of(arm)[name]
            drawn = [request for request in built.requests if request.sampling is not None]
            rows = {(*before, *after[:-1]) for request in built.requests for before, after in request.pairs}
            load = Load(
                PREFIX + name, arm, len(built.documents), sum(len(request.prompt) for request in drawn),
                longest=max((r.sampling.max_tokens for r in drawn if r.sampling), default=0),
                scored_tokens=sum(map(len, rows)),
            )  # fmt: skip
            loads.append(_answered(load, sum(request.repeats for request in drawn), heard))
    return loads


def _answered(load: Load, answers: int, heard: Heard) -> Load:
    """The load with so many answers, as long as is known of this arm; else half as long as they may become, and the
    longest as long as they may.
    """
    known = answer_lengths.of(heard, load.task, load.arm)
    if known is None:
        mean, most = COMPLETION_SHARE * load.longest, float(load.longest)
    else:
        mean, most = known.mean(load.longest), known.most(answers, load.longest)
    return replace(load, answers=answers, answer_tokens=mean * answers, most=most)


def seconds(load: Load, setting: Setting) -> float:
    """Seconds of an arm's answers to a task by the kit's decoder and its dense copy of the weights, a batch to its
    longest row, and of whole texts in one forward pass each.
    """
    return _answering(load, setting) + _scoring(load, setting)


def _answering(load: Load, setting: Setting) -> float:
    if not load.answers:
        return 0.0
    recipe, shape, card = setting.recipe, setting.shape, setting.card
    prompt, mean = load.prompt_tokens / load.questions, load.answer_tokens / load.answers
    rows = max(1, min(load.answers, int(setting.padded_tokens / (prompt + load.longest))))
    steps = ceil(load.answers / rows) * max(mean, load.most)
    like = {"rollout.max_tokens": max(1, round(2 * mean)), "prompts.source": "mine.jsonl"}
    like |= {"prompts.max_tokens": max(1, round(prompt / timing.PROMPT_SHARE))}
    asked = changed(recipe, like)
    prefill = timing.forward(asked, shape, card, load.prompt_tokens, prompt, adapted=False).seconds(card)
    alive = load.answer_tokens / steps
    a_token = timing.token_seconds(asked, shape, card, "folded" if setting.copy else "compact", alive)
    return _copying(setting) + prefill + steps * a_token


def _copying(setting: Setting) -> float:
    """Seconds of a dense copy of the linear layers."""
    shape, card = setting.shape, setting.card
    written = card.float_bytes * shape.linear_parameters / card.activation_bytes_a_second
    once = written + timing.weights_seconds(setting.recipe.model.quantization, shape, card)
    return once if card.cuda else CPU_COPY * once


def _scoring(load: Load, setting: Setting) -> float:
    if not load.scored_tokens:
        return 0.0
    shape, card = setting.shape, setting.card
    a_text = load.scored_tokens / load.questions
    work = timing.forward(setting.recipe, shape, card, load.scored_tokens, a_text, adapted=False)
    logits = load.scored_tokens * shape.vocabulary
    head = 2 * logits * shape.hidden / card.flops + 5 * 4 * logits / card.activation_bytes_a_second
    passes = ceil(4 * logits / LOGIT_BYTES)
    launches = passes * shape.layers * card.dense_layer_seconds
    return _copying(setting) + timing.combined(card, work.seconds(card) + head, launches)


def total_seconds(loads: list[Load], setting: Setting) -> float:
    return sum(seconds(load, setting) for load in loads)


def text(loads: list[Load], setting: Setting) -> str:
    """The plan of an evaluation as a table by task and arm, its sum, and what a limit would make of it."""
    rows: list[tuple[str, ...]] = [("task", "arm", "questions", "answers", "tokens", "time", "$")]
    for load in loads:
        name = (load.task, load.arm.replace("_", " "), f"{load.questions:,}", f"{load.answers:,}")
        rows.append((*name, f"{load.tokens:,.0f}", *_cost(seconds(load, setting), setting)))
    tokens = sum(load.tokens for load in loads)
    rows.append(("together", "", "", "", f"{tokens:,.0f}", *_cost(total_seconds(loads, setting), setting)))
    lines = aligned(rows, left=(0, 1))
    most = max((load.questions for load in loads), default=0)
    for limit in (limit for limit in (50, 200, 500) if limit < most):
        less = total_seconds([load.of(limit) for load in loads], setting)
        lines.append(f"--limit {limit}: {said(less, setting)}")
    card = setting.card
    how = f"rates measured by --probe, {card.probed}" if card.measured else "rates assumed, nothing measured"
    return "\n".join([*lines, f"{card.title}; {how}; loading and judging are not in it"])


def suite_plan(suite: str, limit: int | None, setting: Setting) -> str:
    """The plan of an evaluation by a suite, whose questions are not at hand."""
    head = f"suite {suite}; {answer_lengths.ASSUMED}, prompts assumed"
    return f"{head}\n{text(suite_loads(suites.SUITES[suite], limit), setting)}"


def share(planned: Plan, setting: Setting) -> str:
    """How much of a run is its own evaluation, and what the suites take afterwards, in a line."""
    total = 3600 * planned.hours
    told = "nothing is measured at its end"
    if planned.closing:
        told = f"of it base against tuned at its end: {duration(planned.closing)} ({planned.closing / total:.0%})"
    named = ("microcosm",) if names.name_of(setting.recipe.model.name) == "microcosm" else ("quick", "grlo")
    taken = {name: total_seconds(suite_loads(suites.SUITES[name], None), setting) for name in named}
    later = ", ".join(f"{name} {said(took, setting)}" for name, took in taken.items())
    return f"{told}; afterwards, `evaluate --suite`: {later}"


def said(took: float, setting: Setting) -> str:
    """Time and dollars."""
    time, dollars = _cost(took, setting)
    return f"{time}, ${dollars}" if dollars else time


def _cost(took: float, setting: Setting) -> tuple[str, str]:
    return duration(took), "" if setting.usd_per_hour is None else f"{took / 3600 * setting.usd_per_hour:.2f}"
