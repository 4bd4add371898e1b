"""A run's rollout engine: what `generate`, which TRL calls, does while a policy is trained."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from grlo_lite.generation import twin_check
from grlo_lite.generation.decoding import Answers, Prompts, decode, half
from grlo_lite.generation.engine_table import WORTH_FOLDING
from grlo_lite.generation.kv_cache import ROOM, kv_bytes
from grlo_lite.generation.request import Sampling
from grlo_lite.generation.twin import base_of, copy_bytes, twin
from grlo_lite.generation.vllm_rollouts import VllmRollouts
from grlo_lite.machine.device import free_bytes, until_it_fits
from grlo_lite.recipe.schema import Recipe


@contextmanager
def rollouts(recipe: Recipe, model: Any, chosen: str, halvings: Any) -> Iterator[VllmRollouts | None]:
    """Inside, `model.generate` answers by the engine that was chosen; outside, as before. `halvings` keeps what had to
    be halved where memory ran out. Gives what TRL's trainer has to sample through where that is not `generate`.
    """
    answer = ENGINES[chosen](model, recipe, halvings)
    if answer is None:
        yield None
        return
    if isinstance(answer, VllmRollouts):
        with closing(answer):
            yield answer
        return
    before = vars(model).get("generate")
    model.generate = answer
    try:
        yield None
    finally:
        del model.generate
        if before is not None:
            model.generate = before


class Rollouts:
    """The policy's completions by its decoding twin, in the place of `generate` and called as it is.

    At most `rows_at_once` completions are decoded together; `auto` is all of them on a CPU, and on a GPU as many as
    `rows_that_fit` says, which also gives up the dense copy where it would leave room for too few. The first batch's
    log-probabilities are compared with the policy's own.
    """

    def __init__(self, model: Any, fold: bool, rows_at_once: int | str, halvings: Any):
        self.model, self.fold, self.rows_at_once, self.halvings = model, fold, rows_at_once, halvings
        self.checked = False
        self.sampled_entropy: float | None = None  # of the newest batch; a trainer of Unsloth's logs no entropy
        self.__name__ = "generate"

    def __call__(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, generation_config: Any, **_: Any
    ) -> torch.Tensor:
        """Prompts and completions, shape (B, P + C), padded on the right, as `generate` returns them."""
        prompts, sampling = of_generate(self.model, input_ids, attention_mask, generation_config)
        answers = Answers(prompts, sampling)
        self._decode(prompts, answers)
        self.sampled_entropy = mean_surprise(answers)
        if not self.checked:
            twin_check.require_the_policys(self.model, prompts, answers)
            self.checked = True
        return torch.cat([input_ids, answers.tokens_BT], 1)

    def _decode(self, prompts: Prompts, answers: Answers) -> None:
        """Fills in the answers. Where memory runs out, first the dense copy is given up, then the rows at once are
        halved; what has ended by then is kept. Raises DoesNotFit where not even one row fits.
        """
        rows, folding = self._sizes(prompts, answers.sampling)

        def attempt() -> None:
            with twin(self.model, folding) as made:
                decode(made, prompts, answers, rows)

        def smaller() -> None:
            nonlocal rows, folding
            if folding:
                self.halvings.note("dense copy", copy_bytes(base_of(self.model)), 0)
                folding = False
            else:
                rows = noted_half(rows, self.halvings)

        until_it_fits(attempt, smaller)

    def _sizes(self, prompts: Prompts, sampling: Sampling) -> tuple[int, bool]:
        """Completions at once, and whether they are decoded by a dense copy."""
        batch, prompt_tokens = prompts.ids_BP.shape
        wanted = batch if self.rows_at_once == "auto" else min(int(self.rows_at_once), batch)
        wanted = min(wanted, self.halvings.smallest("rollout") or wanted)
        fold = self.fold and self.halvings.smallest("dense copy") is None
        if self.model.device.type != "cuda":
            return wanted, fold
        read = len(torch.unique(prompts.ids_BP, dim=0)) * prompt_tokens / batch
        return rows_that_fit(self.model, fold, wanted, prompt_tokens + sampling.max_tokens + ROOM, read)


def mean_surprise(answers: Answers) -> float:
    """The mean of -log p over the tokens that were drawn, nats: an estimate of the policy's entropy a token."""
    logp_BT, length_B = answers.logp_BT[:-1], answers.length_B[:-1]
    drawn_BT = torch.arange(logp_BT.shape[1], device=logp_BT.device) < length_B[:, None]
    return -float(logp_BT[drawn_BT].mean())


def of_generate(model: Any, ids_BP: torch.Tensor, mask_BP: torch.Tensor, config: Any) -> tuple[Prompts, Sampling]:
    """What `generate` was asked for, in the decoder's terms."""
    settings = model.generation_config
    ends = config.eos_token_id if config.eos_token_id is not None else settings.eos_token_id
    pad = config.pad_token_id if config.pad_token_id is not None else settings.pad_token_id
    top_p = 1.0 if config.top_p is None else config.top_p
    temperature = (1.0 if config.temperature is None else config.temperature) if config.do_sample else 0.0
    ends = list(ends) if isinstance(ends, (list, tuple)) else [ends]
    return Prompts(ids_BP, mask_BP.bool(), ends, pad), Sampling(config.max_new_tokens, temperature, top_p)


def in_parts(whole: Callable[..., torch.Tensor], pad_id: int, halvings: Any) -> Callable[..., torch.Tensor]:
    """`generate` for a batch that need not fit: in parts, one after the other, from the first time that it does not.

    Its answers are padded on the right to the longest one, as those of one batch are. A part draws other random
    numbers than the whole batch would. Raises DoesNotFit where not even one row fits.
    """

    def generate(input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        rows = len(input_ids)
        at_once = min(halvings.smallest("rollout") or rows, rows)

        def attempt() -> list[torch.Tensor]:
            return [
                whole(input_ids=input_ids[start : start + at_once], **_rows(options, rows, start, at_once))
                for start in range(0, rows, at_once)
            ]

        def smaller() -> None:
            nonlocal at_once
            at_once = noted_half(at_once, halvings)

        parts = until_it_fits(attempt, smaller)
        if len(parts) == 1:
            return parts[0]
        return pad_sequence([row for part in parts for row in part], batch_first=True, padding_value=pad_id)

    return generate


def noted_half(rows: int, halvings: Any) -> int:
    """Half as many completions at once, which `halvings` is told. Raises DoesNotFit at one."""
    halvings.note("rollout", rows, half(rows))
    return half(rows)


def _rows(options: dict[str, Any], rows: int, start: int, at_once: int) -> dict[str, Any]:
    """The options of `generate` for a part of the rows: tensors with a value a row are cut, all else stays."""
    return {
        key: value[start : start + at_once] if isinstance(value, torch.Tensor) and value.shape[:1] == (rows,) else value
        for key, value in options.items()
    }


def rows_that_fit(model: Any, fold: bool, wanted: int, columns: int, read: float) -> tuple[int, bool]:
    """How many completions fit into the free GPU memory at once, at most `wanted`, and whether to fold.

    A completion is counted with `columns` tokens of KV cache, with its logits while a token is drawn and with its share
    of the prompts, `read` tokens. Folding is given up where it would leave room for fewer than WORTH_FOLDING
    completions and for fewer than there are.
    """
    free = free_bytes(model.device)
    config = model.config.get_text_config()
    copy = copy_bytes(base_of(model))
    with_copy = rows_in(config, int(0.9 * free) - copy, columns, read)
    if fold and with_copy >= min(wanted, WORTH_FOLDING):
        return min(wanted, with_copy), True
    return min(wanted, max(1, rows_in(config, int(0.9 * free), columns, read))), False


def rows_in(config: Any, free: int, columns: int, read: float) -> int:
    """How many rows of `columns` tokens go into `free` bytes on a GPU: 16-bit keys and values, one layer of them twice
    while it grows, 16 bytes a logit while a token is drawn, and a layer's activations for `read` tokens of prompt.
    """
    a_layer = columns * kv_bytes(config)
    reading = int(read * (16 * config.hidden_size + 8 * config.intermediate_size))
    return max(0, free) // ((config.num_hidden_layers + 1) * a_layer + 16 * config.vocab_size + reading)


def transformers_generate(model: Any, recipe: Recipe, halvings: Any) -> Callable[..., torch.Tensor]:
    """The model's own `generate`, in parts where memory runs out."""
    return in_parts(model.generate, model.generation_config.pad_token_id, halvings)


def compact(model: Any, recipe: Recipe, halvings: Any) -> Callable[..., torch.Tensor]:
    """The kit's decoder, by weights that are dequantized as they are needed."""
    return Rollouts(model, False, recipe.rollout.rows_at_once, halvings)


def folded(model: Any, recipe: Recipe, halvings: Any) -> Callable[..., torch.Tensor]:
    """The kit's decoder, by a dense copy of the weights, adapter included, where there is room for one."""
    return Rollouts(model, True, recipe.rollout.rows_at_once, halvings)


def called_by_the_trainer(model: Any, recipe: Recipe, halvings: Any) -> None:
    """Nothing that stands in for `generate`: TRL's trainer calls Unsloth's vLLM itself."""


# rollout.engine: what is called in the place of `model.generate`, as it is, or what TRL samples through; None where
# there is neither
ENGINES: dict[str, Callable[[Any, Recipe, Any], Callable[..., torch.Tensor] | VllmRollouts | None]] = {
    "generate": transformers_generate,
    "compact": compact,
    "folded": folded,
    "fast_inference": called_by_the_trainer,
    "vllm": VllmRollouts,
}
