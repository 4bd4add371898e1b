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
    a, b, others = real_models.labelled_pairs(ROWS)
    # rates, drawn towards the average of 1/2 by four comparisons: (0 + 2) / 5 and (1 + 2) / 5
    assert (a.one, a.other, a.likely) == ("a", "c", pytest.approx(0.6 * 0.4))
    assert (b.one, b.other, b.likely) == ("b", "c", pytest.approx(0.4 + 0.6 * 0.6))
    # two odds multiplied: 0.76 / 0.24 twice
    assert (others.one, others.other, others.likely) == ("b", "a", pytest.approx(0.76**2 / (0.76**2 + 0.24**2)))


def test_a_head_scores_the_likelier_answer_higher(real_models):
    np = pytest.importorskip("numpy")
    pytest.importorskip("sklearn")
    place = {("p", "a"): 0, ("p", "b"): 1, ("p", "c"): 2}
    features_NH = np.array([[0.0, 3.0], [1.0, 1.0], [0.5, 2.0]])  # better along the first, worse along the second
    scores_N = features_NH @ real_models.fitted_head(features_NH, place, real_models.labelled_pairs(ROWS))
    assert scores_N[1] > scores_N[2] > scores_N[0]
