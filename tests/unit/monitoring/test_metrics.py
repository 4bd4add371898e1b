"""The numbers of a step that TRL's logs do not have, or have wrongly."""

from types import SimpleNamespace

from grlo_lite.monitoring import metrics


def test_a_skipped_update_has_no_norm_of_gradients():
    logs = {"loss": 0.5, "grad_norm": float("inf")}
    assert metrics.without_overflow(logs, SimpleNamespace(step_was_skipped=True)) == {"loss": 0.5, "skipped_update": 1}
    assert metrics.without_overflow(logs, SimpleNamespace(step_was_skipped=False)) == logs
    assert metrics.without_overflow(logs, None) == logs


def test_entropy_is_that_of_the_rollout_where_the_trainer_logs_none():
    engine = SimpleNamespace(sampled_entropy=1.25)
    assert metrics.with_entropy({"loss": 0.5}, engine) == {"loss": 0.5, "entropy": 1.25}
    assert metrics.with_entropy({"loss": 0.5, "entropy": 0.9}, engine)["entropy"] == 0.9
    assert "entropy" not in metrics.with_entropy({"loss": 0.5}, None)
