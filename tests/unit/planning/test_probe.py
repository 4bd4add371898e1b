"""What --probe measures and where it is filed; the figures themselves are the machine's."""

import json

import pytest
import torch

from grlo_lite import plan
from grlo_lite.errors import BadInput
from grlo_lite.machine import versions
from grlo_lite.planning import cards, probe, probes, this_machine, timing
from grlo_lite.recipe import loading as recipes


@pytest.fixture
def filed(tmp_path, monkeypatch):
    path = tmp_path / "cache" / "probes.json"
    monkeypatch.setenv("GRLO_LITE_PROBES", str(path))
    return path


def row(**changes):
    card = this_machine.cpu_card()
    rates = {rate: getattr(card, rate) for rate in probes.RATES} | {"flops": 123e9}
    facts = {
        "device": this_machine.cpu_name(),
        "vram": card.vram,
        "torch": versions.installed("torch"),
        "date": "2026-11-23",
    }
    return facts | {"rates": rates} | changes


def write(path, *rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"probes": list(rows)}))


def test_a_probe_is_measured_filed_and_taken_by_the_next_plan(filed, monkeypatch, capsys):
    monkeypatch.setattr(probe, "SECONDS", 0.02)
    other = row(device="another CPU")
    write(filed, other)
    state = torch.get_rng_state()
    assert plan.main(["microcosm", "--probe"]) == 0
    assert torch.equal(torch.get_rng_state(), state)
    printed = capsys.readouterr().out
    assert f"filed in {filed}\n" in printed
    assert "rates measured by --probe, 20" in printed
    for words in (
        "TFLOP/s in large matrix products",
        "GB/s of weights in a token",
        "µs of the host for a layer",
        "in a 4-bit product of one row",
        "in one of 16 rows",
        "in one of 32 rows",
    ):
        assert words in printed
    kept, mine = json.loads(filed.read_text())["probes"]
    assert kept == other
    assert set(mine["rates"]) == set(probes.RATES)
    card = this_machine.cpu_card()
    assert card.measured
    assert card.flops == mine["rates"]["flops"]
    assert card.dense_layer_seconds < card.layer_seconds < 0.1
    assert not list(filed.parent.glob(".*"))  # nothing of an atomic write is left


def test_4_bit_products_of_1_16_and_32_rows_are_measured(monkeypatch):
    """A second each, of which the rows' own 2 FLOPs a weight take 1 %, 16 % and 32 %."""
    shape, asked = probe.replace(probe.TINY, hidden=64, mlp=128), []

    def a_second(run, device):
        asked.append(tuple(run().shape))
        return 1.0

    monkeypatch.setattr(probe, "median_seconds", a_second)
    rates = probe.fused_products(shape, torch.device("cpu"), torch.float32, few_rows_flops=200 * 64 * 128)
    assert asked == [(1, 128), (16, 128), (32, 128)]
    weights = 64 * 128
    assert rates == pytest.approx({"fused_1": weights / 0.99, "fused_16": weights / 0.84, "fused_32": weights / 0.68})


@pytest.mark.parametrize("changes", [{"device": "another"}, {"torch": "0.1"}, {"vram": 2**30}])
def test_a_probe_of_something_else_is_not_taken(filed, changes):
    write(filed, row(**changes))
    assert not this_machine.cpu_card().measured


def test_a_card_is_found_by_its_name_and_nearly_by_its_memory(filed):
    write(filed, row(device="NVIDIA L4", vram=22 * 2**30))
    card = cards.recognized("NVIDIA L4", 22 * 2**30, bf16=True)
    assert probes.probed(card, "NVIDIA L4", int(21.7 * 2**30)).flops == 123e9
    assert not probes.probed(card, "NVIDIA L4", 24 * 2**30).measured
    assert not cards.known_card("l4").measured  # a card that is only named is not the one here


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"probes": [{}]}', json.dumps({"probes": [{**row(), "rates": {}}]}),
     json.dumps({"probes": [{**row(), "rates": dict.fromkeys(probes.RATES, 0)}]})],
)  # fmt: skip
def test_a_damaged_file_is_one_line_that_says_how_to_mend_it(filed, text):
    filed.parent.mkdir()
    filed.write_text(text)
    with pytest.raises(BadInput, match=r"is damaged .*: delete it, and run .* --probe again") as told:
        this_machine.cpu_card()
    assert "\n" not in str(told.value)
    assert str(filed) in str(told.value)


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(monkeypatch):
    monkeypatch.setenv("GRLO_LITE_PROBES", "/proc/none/probes.json")
    monkeypatch.setattr(probe, "median_seconds", lambda run, device: pytest.fail("measured"))
    with pytest.raises(BadInput, match=r"cannot be written: .*; name another file in GRLO_LITE_PROBES"):
        plan.main(["microcosm", "--probe"])


def test_probe_stands_alone():
    with pytest.raises(BadInput, match="leave --gpu and --all out"):
        plan.main(["--probe", "--gpu", "t4"])


def test_activations_are_timed_as_what_an_update_takes_beyond_its_products(monkeypatch):
    """Two layers, 32 × 64 tokens, a second: what is left of it is the bytes that timing counts, by the rate."""
    wanted, card = recipes.load("microcosm", []), this_machine.cpu_card()
    shape = probe.replace(probe.TINY, layers=2)
    monkeypatch.setattr(probe, "median_seconds", lambda run, device: 1.0)

    class Model:
        device = torch.device("cpu")

        def train(self):
            pass

    rate = probe.activation_bytes(wanted, shape, card, Model())
    work = timing.update_work(wanted, shape, card, 32 * 64, 64, 1)
    weights = 2 * timing.weights_seconds("nf4", shape, card)
    assert work.flops / card.flops + weights + 4 * card.layer_seconds + work.traffic / rate == pytest.approx(1.0)
