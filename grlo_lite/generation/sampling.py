"""A token drawn from logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from grlo_lite.generation.request import Sampling

BLOCK = 128  # tokens of the vocabulary whose probabilities are summed first


@contextmanager
def seeded(model: Any, seed: int) -> Iterator[None]:
    """Inside, random draws follow from the seed; outside, the global random state is as it was."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def drawn(logits_SV: torch.Tensor, uniform_S: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """A token a row, shape (S,), and its log-probability at the temperature, before top-p leaves any out.

    Greedy at temperature 0, where the log-probability is the one at temperature 1. Otherwise the token at which the
    cumulated probabilities pass `uniform_S`, numbers from [0, 1): one random number a token, where drawing by
    exponentials (`torch.multinomial`) takes one for every token of the vocabulary. The logits may be overwritten.
    """
    greedy_S = None if sampling.temperature else logits_SV.argmax(-1)
    scores_SV = logits_SV.float()  # the same tensor where it is fp32 already
    if sampling.temperature not in (0, 1):
        scores_SV = scores_SV.div_(sampling.temperature)
    weights_SV = scores_SV.sub_(scores_SV.amax(-1, keepdim=True)).exp_()
    if greedy_S is not None:
        tokens_S = greedy_S
        return tokens_S, (_at(weights_SV, tokens_S) / weights_SV.sum(-1)).log()
    kept_SV = weights_SV if sampling.top_p >= 1 else nucleus(weights_SV, sampling.top_p)
    tokens_S, total_S = _passed(kept_SV, uniform_S)
    if kept_SV is not weights_SV:
        total_S = weights_SV.sum(-1)
    return tokens_S, (_at(weights_SV, tokens_S) / total_S).log()


def nucleus(weights_SV: torch.Tensor, top_p: float) -> torch.Tensor:
    """The weights with zeros outside the smallest set that holds `top_p` of their sum (as Transformers has it)."""
    ascending_SV, order_SV = weights_SV.sort(-1)
    cumulated_SV = ascending_SV.cumsum(-1)
    outside_SV = cumulated_SV <= (1 - top_p) * cumulated_SV[:, -1:]
    outside_SV[:, -1] = False
    return weights_SV.masked_fill(outside_SV.scatter(-1, order_SV, outside_SV), 0.0)


def _at(values_SV: torch.Tensor, tokens_S: torch.Tensor) -> torch.Tensor:
    return values_SV.gather(-1, tokens_S[:, None])[:, 0]


def _passed(weights_SV: torch.Tensor, uniform_S: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The index at which cumulated weights pass `uniform_S` of their sum, and the sum; block by block, then within
    the block. An index of weight zero is never taken.
    """
    lacking = -weights_SV.shape[-1] % BLOCK
    if lacking:
        weights_SV = torch.nn.functional.pad(weights_SV, (0, lacking))
    blocks_SNC = weights_SV.view(len(weights_SV), -1, BLOCK)
    cumulated_SN = blocks_SNC.sum(-1).cumsum(-1)
    aim_S1 = _below(uniform_S[:, None] * cumulated_SN[:, -1:], cumulated_SN[:, -1:])
    block_S1 = torch.searchsorted(cumulated_SN, aim_S1, right=True)
    before_S1 = torch.where(block_S1 > 0, cumulated_SN.gather(1, (block_S1 - 1).clamp(min=0)), 0.0)
    within_SC = blocks_SNC[torch.arange(len(block_S1), device=block_S1.device), block_S1[:, 0]].cumsum(-1)
    rest_S1 = _below((aim_S1 - before_S1).clamp(min=0.0), within_SC[:, -1:])
    place_S1 = torch.searchsorted(within_SC, rest_S1, right=True)
    return (block_S1 * BLOCK + place_S1)[:, 0], cumulated_SN[:, -1]


def _below(value: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """The value, or the largest number under the limit: rounding may take it there."""
    return torch.minimum(value, torch.nextafter(limit, torch.zeros_like(limit)))
