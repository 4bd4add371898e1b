"""How far what samples is from what is trained, and the correction of the loss for it."""

from typing import Any

import torch

from grlo_lite.training.trl_inside import LARGEST_RATIO


def corrected(sampler: Any, drift: dict[str, float], rollout: dict[str, Any]) -> dict[str, Any]:
    """The rollout, corrected. Into `drift` goes how the policy's probabilities of what was sampled differ from the
    sampler's.

    GRPO's trainer has corrected each token's loss by then. RLOO's loss is of whole completions, and TRL corrects it by
    nothing: here a completion's advantage is multiplied by its ratio, cut at LARGEST_RATIO, as its loss would be.
    """
    mask_BT = rollout["completion_mask"].bool()
    if "sampling_per_token_logps" in rollout:
        policys_BT = completions_own(rollout["old_per_token_logps"], rollout["prompt_mask"], mask_BT.shape[1])
        difference = (policys_BT - rollout["sampling_per_token_logps"])[mask_BT]
        tokens = torch.ones_like(difference)
    else:
        counted_B = mask_BT.any(1)  # a masked completion has no loss
        said_B = torch.tensor([sum(said.logps) for said in sampler.newest], device=mask_BT.device)
        difference_B = torch.where(counted_B, rollout["old_logps"] - said_B, 0.0)
        rollout["advantages"] = rollout["advantages"] * difference_B.exp().clamp(max=LARGEST_RATIO)
        difference, tokens = difference_B[counted_B], mask_BT.sum(1)[counted_B]
    drift.clear()
    drift.update(drift_metrics(difference, tokens))
    return rollout


def completions_own(logps_BW: torch.Tensor, prompt_mask_BP: torch.Tensor, tokens: int) -> torch.Tensor:
    """The log-probabilities of completions, shape (B, tokens). Unsloth moves the padding in front of a prompt behind
    its completion, so that completions of shorter prompts begin sooner, and gives as many columns more.
    """
    spare = logps_BW.shape[1] - tokens
    if not spare:
        return logps_BW
    first_B1 = spare - (prompt_mask_BP == 0).sum(1, keepdim=True)
    return logps_BW.gather(1, first_B1 + torch.arange(tokens, device=logps_BW.device))


def drift_metrics(difference_N: torch.Tensor, tokens_N: torch.Tensor) -> dict[str, float]:
    """Of log-probabilities of tokens, or of completions of so many tokens, the policy's less the sampler's: the mean of
    their size a token, nats, and the probabilities' ratio, before it is cut: mean, spread, least, largest, and the
    share that is cut. Empty where nothing was sampled.
    """
    if not len(difference_N):
        return {}
    ratio_N = difference_N.float().exp()
    return {
        "sampler_logp_difference": float((difference_N.abs() / tokens_N).mean()),
        "importance_ratio_mean": float(ratio_N.mean()),
        "importance_ratio_std": float(ratio_N.std(correction=0)),
        "importance_ratio_min": float(ratio_N.min()),
        "importance_ratio_max": float(ratio_N.max()),
        "importance_clipped_fraction": float((ratio_N > LARGEST_RATIO).float().mean()),
    }
