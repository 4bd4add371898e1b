"""The judge that is never optimized, and what its asking leaves behind."""

from types import SimpleNamespace

import torch

from grlo_lite.generation.request import Answer
from grlo_lite.models import chat_template, names
from grlo_lite.recipe import loading as recipes
from grlo_lite.rewards import heldout


class Answering:
    """A model that Unsloth has loaded: its answers turn gradient checkpointing off, `.train()` does not turn it on."""

    device = torch.device("cpu")
    _unsloth_gradient_checkpointing = "unsloth"

    def __init__(self):
        self.training, self.checkpointing = True, "unsloth"

    def train(self, mode=True):
        self.training = mode

    def eval(self):
        self.train(False)

    def for_training(self, use_gradient_checkpointing):
        self.training, self.checkpointing = True, use_gradient_checkpointing

    def answered(self):
        self.checkpointing = False


def test_checkpointing_is_on_again_after_every_evaluation(monkeypatch):
    """Unsloth's RLOO trainer, unlike its GRPO trainer, would leave it off."""
    model, asked = Answering(), []

    def sampled_answers(policy, texts, *_):
        asked.append(policy.model.training)
        policy.model.answered()
        return [Answer("fine", 1, False) for _ in texts]

    judge = SimpleNamespace(score=lambda conversations: [1.0] * len(conversations))
    monkeypatch.setattr(heldout, "sampled_answers", sampled_answers)
    monkeypatch.setattr(heldout.models, "load_judge", lambda *_: judge)
    words = ["reward.heldout.name=microcosm-heldout", "reward.heldout.prompts=2", "reward.heldout.every=1"]
    recipe = recipes.load("microcosm", [*words, "algorithm.name=rloo"])
    policy = SimpleNamespace(model=model, tokenizer=chat_template.load_tokenizer(str(names.POLICY), "main"))
    rows = [[{"role": "user", "content": text}] for text in ("One?", "Two?")]
    evaluate, _ = heldout.loaded_heldout_judge(recipe, policy, judge, rows, model.device)
    for step in (1, 2):
        assert evaluate(step)["reward_heldout_mean"] == 1.0
        assert (model.training, model.checkpointing) == (True, "unsloth")
    assert asked == [False, False]
