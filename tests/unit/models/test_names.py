"""Names that people use, and the paths that they stand for."""

import pytest

from grlo_lite.errors import BadInput
from grlo_lite.models import names


@pytest.mark.parametrize(
    ("name", "base", "judge"),
    [
        ("microcosm", names.ASSETS / "policy", names.ASSETS / "reward"),
        ("microcosm-heldout", "microcosm-heldout", names.ASSETS / "heldout"),
        ("Qwen/Qwen3-4B-Base", "Qwen/Qwen3-4B-Base", "Qwen/Qwen3-4B-Base"),
    ],
)
def test_a_name_stands_for_a_path_and_a_path_for_its_name(name, base, judge):
    assert names.path_of_base(name) == str(base)
    assert names.path_of_judge(name) == str(judge)
    assert names.name_of(str(base)) == names.name_of(str(judge)) == name


@pytest.mark.parametrize("name", ["a" * 5000, f"a/{'a' * 95}", "./nowhere", "~nobody-here/x", "", "one-word", "a/b/c"])
def test_what_is_neither_here_nor_an_id_of_the_hub_is_refused(name):
    with pytest.raises(BadInput, match="there is no such directory"):
        names.judge_path(name)


def test_an_id_of_the_hubs_greatest_length_is_one(tmp_path):
    assert names.judge_path(f"a/{'a' * 94}") == f"a/{'a' * 94}"
    assert names.judge_path(str(tmp_path)) == str(tmp_path)
