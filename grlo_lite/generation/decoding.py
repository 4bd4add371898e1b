"""The kit's decoding loop, which all answers come from: rollouts, evaluation, held-out judge and the app.

It samples from the same distribution as Transformers' `generate`, and differs in what a token costs: a prompt is read
once for all the completions of its group; a row that has ended leaves the batch, and the next one takes its place;
the KV cache is written in place, where Transformers copies it at every token. A row's random numbers are its own,
drawn before the first token, so what it says depends neither on its neighbours nor on how many are decoded together.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch

from grlo_lite.errors import DoesNotFit
from grlo_lite.generation.kv_cache import ROOM, RoomyLayer, one_below_another
from grlo_lite.generation.request import Sampling
from grlo_lite.generation.sampling import drawn
from grlo_lite.generation.twin import Twin

GROUP_TOKENS = 256  # of padding that a forward pass of its own must save: what it costs beside its tokens

Watch = Callable[[list[int], list[int]], Collection[int]]


@dataclass(frozen=True)
class Prompts:
    """What is gone on from: ids (B, P), padded on the left, their mask, the tokens that end a row, and, for a twin
    with an adapter beside it, how much of that each row gets.
    """

    ids_BP: torch.Tensor
    mask_BP: torch.Tensor
    ends: list[int]
    pad: int
    share_B: torch.Tensor | None = None

    def of(self, rows_R: torch.Tensor) -> "Prompts":
        share_R = None if self.share_B is None else self.share_B[rows_R]
        return Prompts(self.ids_BP[rows_R], self.mask_BP[rows_R], self.ends, self.pad, share_R)


class Answers:
    """What was said so far: tokens (B, T), padded behind each row's end, their log-probabilities, and each row's
    random numbers. A row is `done` once it has ended; what was begun and cut off is said again.
    """

    def __init__(self, prompts: Prompts, sampling: Sampling):
        rows, longest = len(prompts.ids_BP), sampling.max_tokens
        device = prompts.ids_BP.device
        self.sampling = sampling
        self.uniform_BT = torch.rand(rows + 1, longest, device=device)
        self.said_BT = prompts.ids_BP.new_full((rows + 1, longest), prompts.pad)  # the last row is of slots that wait
        self.logp_BT = torch.zeros(rows + 1, longest, device=device)
        self.length_B = torch.zeros(rows + 1, dtype=torch.long, device=device)
        self.done_B = torch.zeros(rows + 1, dtype=torch.bool, device=device)

    @property
    def tokens_BT(self) -> torch.Tensor:
        """Of all rows, as wide as the longest."""
        return self.said_BT[:-1, : int(self.length_B[:-1].max())]

    def rows(self) -> list[list[int]]:
        """Each row's tokens up to its end."""
        lengths = self.length_B[:-1].tolist()
        return [row[:length] for row, length in zip(self.said_BT[:-1].tolist(), lengths, strict=True)]

    def take(self, logits_SV: torch.Tensor, row_S: torch.Tensor, count_S: torch.Tensor) -> torch.Tensor:
        """Draws the next token of each slot, keeps it, and returns it, shape (S,)."""
        tokens_S, logp_S = drawn(logits_SV, self.uniform_BT[row_S, count_S], self.sampling)
        self.said_BT[row_S, count_S] = tokens_S
        self.logp_BT[row_S, count_S] = logp_S
        return tokens_S

    def end(self, row_R: torch.Tensor, length_R: torch.Tensor) -> None:
        self.done_B[row_R], self.length_B[row_R] = True, length_R


def half(rows: int) -> int:
    """Half as many rows at once. Raises DoesNotFit at one."""
    if rows == 1:
        raise DoesNotFit("the rollout of a single completion does not fit into this memory")
    return rows // 2


def decode(twin: Twin, prompts: Prompts, answers: Answers, rows_at_once: int, watch: Watch | None = None) -> None:
    """Fills in the answers that are not done yet, at most `rows_at_once` of them together.

    `watch` is told after each step which rows said which tokens, and returns the rows that end with them.
    """
    pending_R = (~answers.done_B[:-1]).nonzero()[:, 0]
    if not len(pending_R):
        return
    ends = torch.tensor(prompts.ends, device=pending_R.device)
    with torch.no_grad(), torch.autocast(pending_R.device.type, enabled=False):
        slots = Slots(twin, prompts, pending_R, min(rows_at_once, len(pending_R)))
        while slots.alive:
            tokens_S = answers.take(slots.logits_SV, slots.row_S, slots.count_S)
            ended_S = torch.isin(tokens_S, ends) | (slots.count_S + 1 == answers.sampling.max_tokens)
            if watch is not None:
                ended_S |= _told(watch, slots, tokens_S)
            ending_S = ended_S & slots.working_S
            answers.end(slots.row_S[ending_S], slots.count_S[ending_S] + 1)
            slots.advance(tokens_S, ended_S)


def _told(watch: Watch, slots: "Slots", tokens_S: torch.Tensor) -> torch.Tensor:
    """Which slots the watcher ends, shape (S,)."""
    rows, tokens, working = slots.row_S.tolist(), tokens_S.tolist(), slots.working_S.tolist()
    ended = watch(
        [row for row, works in zip(rows, working, strict=True) if works],
        [token for token, works in zip(tokens, working, strict=True) if works],
    )
    return torch.tensor([row in ended for row in rows], device=tokens_S.device)


def of_like_length(lengths: list[int]) -> list[list[int]]:
    """Indices of prompts that are read together, the longest first: the split with the least padding and passes."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    best, before = [0], [0]  # of the first i in this order: the cost, and where their last group begins
    for end in range(1, len(order) + 1):
        costs = [best[i] + (end - i) * lengths[order[i]] + GROUP_TOKENS for i in range(end)]
        best.append(min(costs))
        before.append(costs.index(best[-1]))
    groups, end = [], len(order)
    while end:
        groups.append(sorted(order[before[end] : end]))
        end = before[end]
    return groups[::-1]


class Slots:
    """The rows that are decoded together. S slots, W columns that all slots share, padded on the left.

    A slot whose row has ended takes the next prompt, once an eighth of the slots wait; with no prompt left, it goes.
    Until then it decodes into a row that is thrown away, so that a step asks the GPU for one number: the rows alive.
    """

    def __init__(self, twin: Twin, prompts: Prompts, pending_R: torch.Tensor, size: int):
        self.twin, self.prompts, self.pending_R = twin, prompts, pending_R
        self.nowhere = len(prompts.ids_BP)
        self.begun = size
        self.row_S = pending_R[:size].clone()
        begun = prompts.of(self.row_S)
        self.mask_SW, self.share_S = begun.mask_BP.clone(), begun.share_B
        self.count_S, self.position_S = torch.zeros_like(self.row_S), self.mask_SW.sum(1)
        self.working_S = torch.ones_like(self.row_S, dtype=torch.bool)
        self.cache, self.logits_SV, index_S = self._read(begun)
        for layer in self.cache:
            layer.keep(index_S, 0)
        self.alive = size

    def advance(self, tokens_S: torch.Tensor, ended_S: torch.Tensor) -> None:
        """Takes in a token a slot; afterwards `logits_SV` are those of the token to come."""
        self.working_S = self.working_S & ~ended_S
        self.row_S = self.row_S.masked_fill(~self.working_S, self.nowhere)
        self.count_S = (self.count_S + 1).masked_fill(~self.working_S, 0)
        self.alive = int(self.working_S.sum())
        waiting, pending = len(self.row_S) - self.alive, len(self.pending_R) - self.begun
        if not self.alive and not pending:
            return
        if not pending and self.alive <= 0.75 * len(self.row_S):
            tokens_S = tokens_S[self.working_S]
            self._keep(self.working_S.nonzero()[:, 0])
        if self.alive:
            self._fed(tokens_S)
        if pending and (waiting * 8 >= len(self.row_S) or not self.alive):
            self._refill(min(waiting, pending))

    def _fed(self, tokens_S: torch.Tensor) -> None:
        self.mask_SW = torch.cat([self.mask_SW, torch.ones_like(tokens_S[:, None], dtype=torch.bool)], 1)
        self.logits_SV = self.twin.forward(
            tokens_S[:, None], self.mask_SW, self.position_S[:, None], self.cache, self.share_S
        )
        self.position_S = self.position_S + 1

    def _read(self, asked: Prompts) -> tuple[list[RoomyLayer], torch.Tensor, torch.Tensor]:
        """The cache of the distinct prompts, the logits that follow each of the R prompts, and which is whose."""
        told_apart = torch.where(asked.mask_BP, asked.ids_BP, -1)
        if asked.share_B is not None:
            _, of_share_R = torch.unique(asked.share_B, return_inverse=True)
            told_apart = torch.cat([of_share_R[:, None], told_apart], 1)
        _, index_R = torch.unique(told_apart, dim=0, return_inverse=True)
        first_U = torch.stack([(index_R == u).nonzero()[0, 0] for u in range(int(index_R.max()) + 1)])
        lengths = asked.mask_BP[first_U].sum(1).tolist()
        groups = of_like_length(lengths)
        read = [self._read_together(asked.of(first_U[group]), max(lengths[u] for u in group)) for group in groups]
        width, (cache, _) = asked.ids_BP.shape[1], read[0]
        if len(groups) > 1 or cache[0].get_seq_length() < width:
            cache = [one_below_another(layers, width) for layers in zip(*(cache for cache, _ in read), strict=True)]
        read_as_U = torch.tensor([u for group in groups for u in group], device=index_R.device).argsort()
        return cache, torch.cat([logits for _, logits in read])[read_as_U[index_R]], read_as_U[index_R]

    def _read_together(self, asked: Prompts, width: int) -> tuple[list[RoomyLayer], torch.Tensor]:
        """The cache of these prompts, the last `width` columns of them, and the logits that follow each."""
        ids_GP, mask_GP = asked.ids_BP[:, -width:], asked.mask_BP[:, -width:]
        cache = [RoomyLayer() for _ in range(self.twin.layers)]
        position_GP = (mask_GP.cumsum(1) - 1).clamp(min=0)
        return cache, self.twin.forward(ids_GP, mask_GP, position_GP, cache, asked.share_B)

    def _keep(self, kept_R: torch.Tensor) -> None:
        """Goes on with these slots, and without the columns that none of them uses any more."""
        unused = int(self.mask_SW[kept_R].any(0).int().argmax())
        first = max(0, min(unused, self.mask_SW.shape[1] - self.prompts.ids_BP.shape[1]))
        for layer in self.cache:
            layer.keep(kept_R, first)
        self.mask_SW = self.mask_SW[kept_R, first:]
        self.share_S = None if self.share_S is None else self.share_S[kept_R]
        self.row_S, self.count_S, self.position_S = self.row_S[kept_R], self.count_S[kept_R], self.position_S[kept_R]
        self.working_S, self.logits_SV = self.working_S[kept_R], self.logits_SV[kept_R]

    def _refill(self, count: int) -> None:
        """Gives `count` of the waiting slots the next prompts."""
        free_R = (~self.working_S).nonzero()[:count, 0]
        rows_R = self.pending_R[self.begun : self.begun + count]
        self.begun += count
        asked = self.prompts.of(rows_R)
        width = int(asked.mask_BP.sum(1).max())
        cut = Prompts(asked.ids_BP[:, -width:], asked.mask_BP[:, -width:], asked.ends, asked.pad, asked.share_B)
        cache, logits_RV, index_R = self._read(cut)
        for layer, read in zip(self.cache, cache, strict=True):
            layer.place(free_R, read, index_R)
        self.mask_SW[free_R] = False
        self.mask_SW[free_R, -width:] = cut.mask_BP
        if self.share_S is not None and cut.share_B is not None:
            self.share_S[free_R] = cut.share_B
        self.logits_SV[free_R] = logits_RV
        self.row_S[free_R], self.count_S[free_R], self.position_S[free_R] = rows_R, 0, cut.mask_BP.sum(1)
        self.working_S[free_R] = True
        self.alive = int(self.working_S.sum())
        if int(self.mask_SW.any(0).int().argmax()) >= ROOM:
            self._keep(torch.arange(len(self.row_S), device=free_R.device))
