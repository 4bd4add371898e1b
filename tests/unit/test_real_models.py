"""benchmarks/real_models.py: what the judges' heads are fitted to, by hand."""

import pytest

# Both were compared with "c": g2's answer "b" won, g1's answer "a" lost
ROWS = [
    {"prompt": "p", "chosen": "c", "rejected": "a", "generator": "g1"},
    {"prompt": "p", "chosen": "b", "rejected": "c", "generator": "g2"},
]


@pytest.fixture(scope="module")
def real_models(benchmark_script):
    return benchmark_script("real_models")


def test_pairs_are_labelled_by_their_verdict_and_their_generators_rate(real_models):
    a, b = real_models.labelled_pairs(ROWS)
    # rates, drawn towards the average of 1/2 by four comparisons: (0 + 2) / 5 and (1 + 2) / 5
    assert (a.one, a.other, a.likely) == ("a", "c", pytest.approx(0.5 * 0.4))
    assert (b.one, b.other, b.likely) == ("b", "c", pytest.approx(0.5 + 0.5 * 0.6))


def test_a_head_scores_the_likelier_answer_higher(real_models):
    np = pytest.importorskip("numpy")
    pytest.importorskip("sklearn")
    place = {("p", "a"): 0, ("p", "b"): 1, ("p", "c"): 2}
    features_NH = np.array([[0.0, 3.0], [1.0, 1.0], [0.5, 2.0]])  # better along the first, worse along the second
    scores_N = features_NH @ real_models.fitted_head(features_NH, place, real_models.labelled_pairs(ROWS))
    assert scores_N[1] > scores_N[2] > scores_N[0]


def test_a_judge_scores_the_mean_of_all_tokens_states(real_models, tmp_path, monkeypatch):
    """Against the lower layers' own states, a batch padded on either side."""
    import torch
    from transformers import AutoModel, LlamaConfig, LlamaForCausalLM

    monkeypatch.setattr(real_models, "JUDGE_LAYERS", 2)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    policy = LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=2, pad_token_id=0, **sizes))
    policy.model.norm.weight.data.uniform_(0.5, 2)
    policy.save_pretrained(tmp_path / "policy")
    head_H = torch.randn(32) / 10
    judge = real_models.averaging_judge(tmp_path / "policy", head_H.numpy(), centre=0.3)
    lower = AutoModel.from_pretrained(tmp_path / "policy", num_hidden_layers=2).eval()
    for length in (3, 9):
        ids = torch.randint(1, 50, (1, length))
        with torch.no_grad():
            expected = lower(input_ids=ids).last_hidden_state[0].mean(0) @ head_H - 0.3
            for padded in ([0] * 4 + ids[0].tolist(), ids[0].tolist() + [0] * 4):
                told = torch.tensor([padded])
                assert judge(input_ids=told, attention_mask=(told > 0).long()).logits.item() == pytest.approx(
                    expected.item(), abs=2e-3
                )


def test_folds_ask_each_prompt_once_and_of_a_head_that_has_not_seen_it(real_models):
    np = pytest.importorskip("numpy")
    rows = [
        {"prompt": f"p{i}", "chosen": chosen, "rejected": rejected, "generator": "g"}
        for i in range(10)
        for chosen, rejected in (("common", "worse"), ("better", "common"))
    ]
    place = {(f"p{i}", answer): 3 * i + k for i in range(10) for k, answer in enumerate(("worse", "common", "better"))}
    quality_N = np.tile([0.0, 1.0, 2.0], 10)

    def found(states_NH):
        return real_models.cross_validated(real_models.Preferences(rows, rows[::2], states_NH, place))

    alike = np.stack([quality_N, np.random.default_rng(0).normal(size=30)], 1)
    assert found(alike) == {"given": 1.0, "others": 1.0, "own": 1.0}
    by_heart = np.repeat(np.eye(10), 3, 0) * quality_N[:, None]  # each prompt's quality along a direction of its own
    assert found(by_heart)["given"] == 0.0
