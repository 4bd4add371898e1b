"""A run's rollouts by vLLM, on TRL's own seam: TRL hands it each step's adapter and prompts, and takes tokens with
their log-probabilities, by which the loss is corrected where sampler and trainer differ.
"""

from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from grlo_lite.errors import BadInput, DoesNotFit, EngineFailed
from grlo_lite.generation import twin_check
from grlo_lite.generation.decoding import Answers, Prompts
from grlo_lite.generation.request import Sampling
from grlo_lite.generation.sampling import seeded
from grlo_lite.generation.vllm_engine import Room, Said, Vllm, cache_bytes, filled
from grlo_lite.machine.device import until_it_fits
from grlo_lite.recipe.schema import Recipe

PHASE = "vLLM's cache"  # as monitoring.halvings names what is halved


class VllmRollouts:
    """What TRL's trainer samples through. vLLM is awake in the rollout alone, and gone once this is closed.

    Each completion's random numbers follow from a seed of its own, drawn from the trainer's generator, so a resumed run
    asks vLLM what the uninterrupted one would have asked. The first batch's log-probabilities are compared with the
    policy's own. Where memory runs out, vLLM is started again with half its cache. Raises BadInput where vLLM cannot be
    started with the model, DoesNotFit where its cache does not hold one completion.
    """

    def __init__(self, model: Any, recipe: Recipe, halvings: Any):
        self.model, self.recipe, self.halvings = model, recipe, halvings
        self.vllm: Vllm | None = None
        self.newest: list[Said] = []
        self.checked = False
        share = recipe.rollout.vllm_memory
        self.cache = min(cache_bytes(model, share), halvings.smallest(PHASE) or cache_bytes(model, share))
        until_it_fits(self._start, self._halve)

    def sync_weights(self) -> None:
        """Hands over the policy's adapter as it is now."""
        until_it_fits(self._running().take, self._restart_smaller)

    def generate(
        self, prompts: list[list[int]], images: Any, num_generations: int, profiler: Any
    ) -> tuple[list[list[int]], list[list[int]], list[list[list[float]]], None]:
        """Prompts, completions and log-probabilities, [row][token][0], as TRL's own vLLM returns them; a prompt stands
        there as often as it is answered.
        """
        rollout, ends = self.recipe.rollout, self.model.generation_config.eos_token_id
        sampling = Sampling(rollout.max_tokens, rollout.temperature, rollout.top_p)
        seeds = torch.randint(2**31, (len(prompts),)).tolist()

        def attempt() -> list[Said]:
            return self._running().said(prompts, ends, sampling, seeds)

        def smaller() -> None:
            self._restart_smaller()
            self._running().take()

        with profiler:
            self.newest = until_it_fits(attempt, smaller)
        self._running().sleep()
        if not self.checked:
            self._require_the_policys(prompts, ends, sampling)
            self.checked = True
        completions = [said.tokens for said in self.newest]
        return prompts, completions, [[[logp] for logp in said.logps] for said in self.newest], None

    def close(self) -> None:
        if self.vllm is not None:
            self.vllm.close()
            self.vllm = None

    def _running(self) -> Vllm:
        assert self.vllm is not None
        return self.vllm

    def _start(self) -> None:
        recipe, rollout = self.recipe, self.recipe.rollout
        rows = rollout.batch if rollout.rows_at_once == "auto" else min(rollout.rows_at_once, rollout.batch)
        room = Room(rows, recipe.prompts.max_tokens + rollout.max_tokens, self.cache)
        folded = rollout.vllm_weights == "folded"
        try:
            self.vllm = Vllm(self.model, recipe.lora.rank, room, rollout.temperature, folded)
        except EngineFailed as error:
            raise BadInput(f"rollout.engine=vllm: {error}; choose rollout.engine=folded") from error

    def _halve(self) -> None:
        if self.cache < 2**20:
            raise DoesNotFit("vLLM's weights leave no memory for its cache; choose rollout.engine=folded")
        self.halvings.note(PHASE, self.cache, self.cache // 2)
        self.cache //= 2

    def _restart_smaller(self) -> None:
        self.close()
        self._halve()
        until_it_fits(self._start, self._halve)

    def _require_the_policys(self, prompts: list[list[int]], ends: list[int], sampling: Sampling) -> None:
        """Raises BadInput where vLLM does not say what the policy would say, by the first rows of a batch."""
        device, pad = self.model.device, self.model.generation_config.pad_token_id
        rows = [torch.tensor(ids, device=device) for ids in prompts[: twin_check.ROWS]]
        ids_RP = pad_sequence(rows, batch_first=True, padding_value=pad, padding_side="left")
        mask_RP = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left").bool()
        asked = Prompts(ids_RP, mask_RP, ends, pad)
        with seeded(self.model, 0):  # the random numbers of answers that are drawn elsewhere
            answers = Answers(asked, sampling)
        filled(answers, self.newest[: len(rows)])
        twin_check.require_the_policys(self.model, asked, answers)
