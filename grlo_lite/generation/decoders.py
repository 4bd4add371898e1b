"""Who answers outside of training: the kit's own decoder by a model's twin, or one vLLM for the base and every adapter.

Both are called alike. What is given back answers as the model stands: with its adapter, with another, or with none.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from typing import Any

import torch

from grlo_lite.errors import BadInput, DoesNotFit, EngineFailed
from grlo_lite.generation import twin_check
from grlo_lite.generation.decoding import Answers, Prompts, Watch, decode
from grlo_lite.generation.engine_table import CPU_ROWS, VLLM_BLOCK, VLLM_RANKS
from grlo_lite.generation.linears import adapters_on
from grlo_lite.generation.twin import base_of, linear_layers, token_layers, twin
from grlo_lite.generation.vllm_engine import Room, Vllm, cache_bytes, filled, token_bytes

Decoder = Callable[[Prompts, Answers, int, Watch | None], None]  # fills in answers; decoding.decode less its twin
Decoding = Callable[..., AbstractContextManager[Decoder]]  # called with the model, and `beside` as `twin` has it
CPU_CACHE = 2**30  # bytes of vLLM's cache, which a CPU fills with zeros at once; what does not fit waits
SHARE = 0.6  # of free memory that the cache may take, as the kit's decoder does


@contextmanager
def kits(model: Any, beside: str | None = None) -> Iterator[Decoder]:
    """The kit's decoder, by the model's twin."""
    with twin(model, beside=beside) as made:
        yield partial(decode, made)


class ByVllm:
    """One vLLM on a model's base, started when it is first asked. The base is asked without an adapter, an adapter goes
    over once, when it is first in effect; neither may change meanwhile. The first answers of each are compared with the
    model's own log-probabilities. `tokens` is how many its cache holds, at most.

    Raises BadInput where vLLM cannot be had with the model or an adapter, and DoesNotFit where a question with its
    answer is longer than what the model reads or the cache holds.
    """

    def __init__(self, model: Any, tokens: int):
        self.model, self.tokens = model, tokens
        self.vllm: Vllm | None = None
        self.taken: str | None = None
        self.compared: set[str | None] = set()

    @contextmanager
    def __call__(self, model: Any, beside: str | None = None) -> Iterator[Decoder]:
        yield partial(self._fill, beside or adapter_in_effect(model), beside is None)
        if self.vllm is not None:
            self.vllm.sleep()

    def close(self) -> None:
        if self.vllm is not None:
            self.vllm.close()
            self.vllm = None

    def _fill(
        self, adapter: str | None, alone: bool, prompts: Prompts, answers: Answers, _: int, watch: Watch | None = None
    ) -> None:
        vllm = self._having(adapter)
        rows = [ids[mask].tolist() for ids, mask in zip(prompts.ids_BP, prompts.mask_BP, strict=True)]
        if (needed := max(map(len, rows)) + answers.sampling.max_tokens) > vllm.room.tokens:
            raise DoesNotFit(
                f"a question with its answer has up to {needed:,} tokens, and the model with vLLM's cache takes "
                f"{vllm.room.tokens:,}; lower the tokens of an answer, or answer without vLLM"
            )
        share = [adapter is not None] * len(rows) if prompts.share_B is None else (prompts.share_B > 0).tolist()
        seeds = torch.randint(2**31, (len(rows),)).tolist()
        filled(answers, vllm.said(rows, prompts.ends, answers.sampling, seeds, share, watch))
        # vLLM's log-probabilities are those at temperature 1
        if alone and adapter not in self.compared and answers.sampling.temperature in (0, 1):
            twin_check.require_the_policys(self.model, prompts, answers)
            self.compared.add(adapter)

    def _having(self, adapter: str | None) -> Vllm:
        """A vLLM that has this adapter, beside its base."""
        try:
            if self.vllm is None:
                self.vllm = Vllm(self.model, largest_rank(self.model), self._room(), 1.0)
            if adapter not in (None, self.taken):
                self.vllm.take(adapter)
                self.taken = adapter
        except EngineFailed as error:
            raise BadInput(f"{error}; the kit's own decoder can answer: leave vLLM out") from error
        return self.vllm

    def _room(self) -> Room:
        """As many tokens of one question and answer as the model reads and the cache holds."""
        a_token = token_bytes(self.model)
        cache = min(cache_bytes(self.model, SHARE), self.tokens * a_token)
        if self.model.device.type != "cuda":
            cache = min(cache, CPU_CACHE)
        reads = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        held = (cache // a_token // VLLM_BLOCK - 1) * VLLM_BLOCK  # a block is vLLM's own
        return Room(CPU_ROWS, max(1, min(held, reads or held)), cache)


@contextmanager
def decoding(engine: str, model: Any, tokens: int) -> Iterator[Decoding]:
    """What answers with a model by the engine of this name; `tokens` is what may be cached together."""
    if engine == "kit":
        yield kits
        return
    with closing(ByVllm(model, tokens)) as made:
        yield made


def adapter_in_effect(model: Any) -> str | None:
    """The name of the adapter that a model answers with; None for its base."""
    names = {name for layer in linear_layers(base_of(model)) for name in adapters_on(layer)}
    assert len(names) <= 1, f"several adapters are in effect together: {names}"
    return next(iter(names), None)


def largest_rank(model: Any) -> int:
    """The largest rank among a model's adapters. Raises BadInput for what vLLM takes of none."""
    if token_layers(base_of(model)):
        raise BadInput("an adapter with rows of the embedding cannot be answered with by vLLM; leave vLLM out")
    configs = getattr(model, "peft_config", {}).values()
    rank = max((max(c.r, *getattr(c, "rank_pattern", {}).values(), 1) for c in configs), default=1)
    if rank > VLLM_RANKS[-1]:
        raise BadInput(f"an adapter of rank {rank} is above vLLM's maximum of {VLLM_RANKS[-1]}; leave vLLM out")
    return rank
