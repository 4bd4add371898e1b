"""The algorithms by name: from `algorithm.name` to TRL's trainer and its configuration.

A new one is a function here, its row in ALGORITHMS, and its name in the recipe's schema.
"""

from collections.abc import Callable
from typing import Any

from grlo_lite.machine import processes
from grlo_lite.recipe.schema import Algorithm


def grpo(algorithm: Algorithm, options: dict[str, Any]) -> tuple[Any, Any]:
    """TRL's GRPO trainer, and its configuration with `options`, which all algorithms share.

    Unsloth's version of the configuration fills in what is not said for an explicit `dapo` (`epsilon_high=0.28`, masked
    truncation), so all of it is said, and turns `scale_rewards=group` off for `dr_grpo`, so that is set again.
    """
    from trl import GRPOConfig, GRPOTrainer

    loss = "dr_grpo" if algorithm.loss == "auto" else algorithm.loss
    config = GRPOConfig(**options, loss_type=loss, scale_rewards=algorithm.scale_rewards, epsilon_high=algorithm.clip)
    config.scale_rewards = algorithm.scale_rewards
    return GRPOTrainer, config


def rloo(algorithm: Algorithm, options: dict[str, Any]) -> tuple[Any, Any]:
    """TRL's RLOO trainer, and its configuration with `options`; its loss is of whole sequences."""
    from trl import RLOOConfig, RLOOTrainer

    return RLOOTrainer, RLOOConfig(**options, normalize_advantages=algorithm.scale_rewards == "batch")


def ppo(algorithm: Algorithm, options: dict[str, Any]) -> tuple[Any, Any]:
    """TRL's GRPO trainer for PPO, which `training/ppo.py` gives the advantages of a critic.

    TRL insists on groups, of whose baseline nothing is left; a penalty of the KL divergence is in the rewards.
    """
    from trl import GRPOConfig, GRPOTrainer

    generations = options["num_generations"]
    if generations == 1:  # any that divides the batch; the trainer is told 1 afterwards
        batch = options["per_device_train_batch_size"] * options["steps_per_generation"] * processes.count()
        generations = next(n for n in range(2, batch + 1) if batch % n == 0)
    loss = "dapo" if algorithm.loss == "auto" else algorithm.loss
    own = {"loss_type": loss, "scale_rewards": "none", "beta": 0.0, "num_generations": generations}
    return GRPOTrainer, GRPOConfig(**options | own, epsilon_high=algorithm.clip)


ALGORITHMS: dict[str, Callable[[Algorithm, dict[str, Any]], tuple[Any, Any]]] = {
    "grpo": grpo,
    "rloo": rloo,
    "ppo": ppo,
}
