"""The kit's own rollout engine: the decoding loop behind `model.generate` while a policy is trained.

It samples from the same distribution as Transformers' `generate`, logits processors included, and differs in what a
token costs: a prompt is read once for all the completions of its group; a row that has ended leaves the batch, and the
next one takes its place; the KV cache is written in place, where Transformers copies it at every token; attention
reads grouped keys without spreading them over the query heads; and, with `folded`, the 4-bit weights are dequantized
once a rollout instead of at every token, with the adapter folded in.
"""

from typing import Any, cast

import torch
from transformers.cache_utils import Cache

from grlo_lite.generation.kv_cache import ROOM, RoomyLayer


def decoded(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    generation_config: Any,
    rows_at_once: int,
    **model_inputs: Any,
) -> torch.Tensor:
    """Prompts and their completions, shape (B, P + C), as Transformers' own decoding methods return them.

    A custom decoding method in the sense of `generate(custom_generate=…)`. The prompts, shape (B, P), are padded on
    the left; a row ends with an EOS or at the configured length, and is padded behind that.
    """
    rows, prompt_tokens = input_ids.shape
    longest = generation_config.max_length - prompt_tokens
    ends, pad = generation_config._eos_token_tensor, generation_config._pad_token_tensor
    said_BT = input_ids.new_full((rows + 1, longest), int(pad))  # the last row is what slots say that wait
    used_T = torch.zeros(longest, dtype=torch.bool, device=input_ids.device)
    slots = Slots(model, input_ids, model_inputs["attention_mask"].bool(), min(rows_at_once, rows))
    while slots.alive:
        scores_SV = logits_processor(slots.ids_SW, slots.logits_SV.float())
        if generation_config.do_sample:
            tokens_S = torch.multinomial(scores_SV.softmax(-1), 1)[:, 0]
        else:
            tokens_S = scores_SV.argmax(-1)
        said_BT[slots.row_S, slots.count_S] = tokens_S
        used_T[slots.count_S] = True
        slots.advance(tokens_S, torch.isin(tokens_S, ends) | (slots.count_S + 1 == longest))
    return torch.cat([input_ids, said_BT[:rows, : int(used_T.sum())]], 1)


class Slots:
    """The rows that are decoded together. S slots, W columns of tokens that all slots share, padded on the left.

    A slot whose row has ended takes the next prompt, once an eighth of the slots wait; with no prompt left, it goes.
    Until then it decodes into a row that is thrown away, so that a step asks the GPU for one number: the rows alive.
    """

    def __init__(self, model: Any, prompts_BP: torch.Tensor, mask_BP: torch.Tensor, size: int):
        self.model, self.prompts_BP, self.mask_BP = model, prompts_BP, mask_BP
        self.begun = size
        self.row_S = torch.arange(size, device=prompts_BP.device)
        self.ids_SW, self.mask_SW = prompts_BP[:size].clone(), mask_BP[:size].clone()
        self.count_S, self.position_S = torch.zeros_like(self.row_S), self.mask_SW.sum(1)
        self.working_S = torch.ones_like(self.row_S, dtype=torch.bool)
        self.cache, self.logits_SV, index_S = self._read(self.ids_SW, self.mask_SW)
        for layer in self.layers:
            layer.keep(index_S, 0)
        self.alive = size

    @property
    def layers(self) -> list[RoomyLayer]:
        return cast("list[RoomyLayer]", self.cache.layers)

    def advance(self, tokens_S: torch.Tensor, ended_S: torch.Tensor) -> None:
        """Takes in a token a slot; afterwards `logits_SV` are those of the token to come."""
        self.working_S = self.working_S & ~ended_S
        self.row_S = self.row_S.masked_fill(~self.working_S, len(self.prompts_BP))
        self.count_S = (self.count_S + 1).masked_fill(~self.working_S, 0)
        self.alive = int(self.working_S.sum())
        waiting, pending = len(self.row_S) - self.alive, len(self.prompts_BP) - self.begun
        if not self.alive and not pending:
            return
        if not pending and self.alive <= 0.75 * len(self.row_S):
            tokens_S = tokens_S[self.working_S]
            self._keep(self.working_S.nonzero()[:, 0])
        if self.alive:
            self._step(tokens_S)
        if pending and (waiting * 8 >= len(self.row_S) or not self.alive):
            self._refill(min(waiting, pending))

    def _step(self, tokens_S: torch.Tensor) -> None:
        self.ids_SW = torch.cat([self.ids_SW, tokens_S[:, None]], 1)
        self.mask_SW = torch.cat([self.mask_SW, torch.ones_like(tokens_S[:, None], dtype=torch.bool)], 1)
        self.logits_SV = self.model(
            input_ids=tokens_S[:, None],
            attention_mask=self.mask_SW[:, None, None],
            position_ids=self.position_S[:, None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self.position_S = self.position_S + 1

    def _read(self, ids_RP: torch.Tensor, mask_RP: torch.Tensor) -> tuple[Cache, torch.Tensor, torch.Tensor]:
        """The cache of the distinct prompts, the logits that follow each of the R prompts, and which is whose."""
        _, index_R = torch.unique(torch.where(mask_RP, ids_RP, -1), dim=0, return_inverse=True)
        first_U = torch.stack([(index_R == u).nonzero()[0, 0] for u in range(int(index_R.max()) + 1)])
        cache = Cache(layer_class_to_replicate=RoomyLayer)
        logits_UV = self.model(
            input_ids=ids_RP[first_U],
            attention_mask=mask_RP[first_U].long(),
            position_ids=(mask_RP[first_U].cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return cache, logits_UV[index_R], index_R

    def _keep(self, kept_R: torch.Tensor) -> None:
        """Goes on with these slots, and without the columns that none of them uses any more."""
        unused = int(self.mask_SW[kept_R].any(0).int().argmax())
        first = max(0, min(unused, self.ids_SW.shape[1] - self.prompts_BP.shape[1]))
        for layer in self.layers:
            layer.keep(kept_R, first)
        self.ids_SW, self.mask_SW = self.ids_SW[kept_R, first:], self.mask_SW[kept_R, first:]
        self.row_S, self.count_S, self.position_S = self.row_S[kept_R], self.count_S[kept_R], self.position_S[kept_R]
        self.working_S, self.logits_SV = self.working_S[kept_R], self.logits_SV[kept_R]

    def _refill(self, count: int) -> None:
        """Gives `count` of the waiting slots the next prompts."""
        free_R = (~self.working_S).nonzero()[:count, 0]
        rows_R = torch.arange(self.begun, self.begun + count, device=free_R.device)
        self.begun += count
        width = int(self.mask_BP[rows_R].sum(1).max())
        ids_RP, mask_RP = self.prompts_BP[rows_R, -width:], self.mask_BP[rows_R, -width:]
        cache, logits_RV, index_R = self._read(ids_RP, mask_RP)
        for layer, read in zip(self.layers, cast("list[RoomyLayer]", cache.layers), strict=True):
            layer.place(free_R, read, index_R)
        self.ids_SW[free_R, -width:], self.mask_SW[free_R] = ids_RP, False
        self.mask_SW[free_R, -width:] = mask_RP
        self.logits_SV[free_R] = logits_RV
        self.row_S[free_R], self.count_S[free_R], self.position_S[free_R] = rows_R, 0, mask_RP.sum(1)
        self.working_S[free_R] = True
        self.alive = int(self.working_S.sum())
        if int(self.mask_SW.any(0).int().argmax()) >= ROOM:
            self._keep(torch.arange(len(self.row_S), device=free_R.device))
