"""The judge that is never optimized."""

import time
from collections.abc import Callable
from typing import Any

from grlo_lite import prompts
from grlo_lite.errors import BadInput
from grlo_lite.generation.answers import rows_at_once, sampled_answers
from grlo_lite.generation.request import Sampling
from grlo_lite.models import loading as models
from grlo_lite.models.unsloth import to_training
from grlo_lite.recipe.schema import Recipe


class HeldoutJudge:
    """Scores the policy's answers to a fixed set of prompts, by the judges it is trained on and by one that it is
    not.
    """

    def __init__(self, answers: Callable[[], list[Any]], trained: Callable, heldout: Callable, every: int):
        self.answers = answers  # the policy's conversations about the fixed prompts, as it answers now
        self.trained = trained
        self.heldout = heldout
        self.every = every

    def __call__(self, step: int) -> dict[str, float]:
        """The metrics of an evaluation: both mean scores and the seconds it took; empty between evaluations."""
        if step % self.every:
            return {}
        began = time.monotonic()
        conversations = self.answers()
        trained, heldout = self.trained(conversations), self.heldout(conversations)
        return {
            "reward_fixed_mean": sum(trained) / len(trained),
            "reward_heldout_mean": sum(heldout) / len(heldout),
            "heldout_seconds": time.monotonic() - began,
        }


def loaded_heldout_judge(
    recipe: Recipe, policy: Any, rewards: Any, heldout_rows: list, device: Any
) -> tuple[Any, list[tuple[str, float, Any]]]:
    """What the recorder asks after each step, and the reward model behind it, as judges are listed; nothing where the
    recipe names none.
    """
    from grlo_lite.models import chat_template

    heldout = recipe.reward.heldout
    if heldout.name is None:
        return lambda step: {}, []
    model, fixed = models.load_judge(recipe, heldout, device), heldout_rows[: heldout.prompts]
    if len(fixed) < 2:
        raise BadInput(
            f"reward.heldout.prompts={heldout.prompts}, but only {len(fixed)} prompts could be held out; add prompts"
        )
    sampling = Sampling(recipe.rollout.max_tokens)

    def answers() -> list[prompts.Messages]:
        policy.model.eval()
        said = sampled_answers(policy, texts, sampling, rows_at_once(policy.model, recipe.rollout.batch), recipe.seed)
        to_training(policy.model)
        return chat_template.with_answers(fixed, [answer.text for answer in said])

    texts = [chat_template.formatted(policy.tokenizer, row) for row in fixed]
    return HeldoutJudge(answers, rewards.score, model.score, heldout.every), [(heldout.name, 0.0, model)]
