"""The committed assets are what the manifest says, and the world has something to unlock."""

import json

import pytest

from grlo_lite.generation import answers
from grlo_lite.microcosm import base_model, build, reward_models, world
from grlo_lite.models import chat_template, names, quantization
from grlo_lite.models import policy as policies

MANIFEST = json.loads((names.ASSETS / "manifest.json").read_text())


def test_the_assets_are_the_manifests_and_small():
    assert build.hashes(names.ASSETS) == MANIFEST["sha256"]
    files = [path for path in names.ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8 * 2**20
    assert {path.suffix for path in files} == {".json", ".jinja", ".jsonl", ".safetensors", ".yaml"}


def test_the_base_is_between_and_a_careful_opening_near_the_top():
    assert set(MANIFEST["base_accuracy"]) == set(MANIFEST["careful_accuracy"]) == set(world.VERIFIABLE)
    assert all(0.2 <= accuracy <= 0.6 for accuracy in MANIFEST["base_accuracy"].values())
    assert all(accuracy >= 0.95 for accuracy in MANIFEST["careful_accuracy"].values())


def test_an_accuracy_of_the_manifest_is_measured_again():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(names.POLICY)
    model = quantization.from_pretrained(AutoModelForCausalLM, str(names.POLICY), "main", "nf4", "cpu").eval()
    model.generation_config.eos_token_id = chat_template.stop_token_ids(tokenizer)
    asked = world.exam("code", MANIFEST["questions"], seed=0)
    for opening, key in (("", "base_accuracy"), (world.CAREFUL_OPENINGS[0], "careful_accuracy_sampled")):
        texts = [chat_template.formatted(tokenizer, [{"role": "user", "content": q.text}]) + opening for q in asked]
        policy = policies.Policy(model, tokenizer, "transformers")
        said = answers.sampled_answers(policy, texts, answers.Sampling(48), len(texts), seed=0)
        right = sum(world.is_right(q, a.text) for q, a in zip(asked, said, strict=True)) / len(asked)
        assert right == pytest.approx(MANIFEST[key]["code"], abs=0.03)  # kernels of other CPUs round otherwise


def test_each_judge_is_good_and_imperfect_and_they_differ():
    trained, heldout = (MANIFEST["pair_accuracy"][judge] for judge in ("reward", "heldout"))
    assert all(trained[kind] >= 0.9 for kind in reward_models.JUDGES["reward"] if kind != "off topic")
    assert min(trained.values()) < 0.95
    assert trained != heldout


def test_preference_pairs_are_chat_alone_and_of_their_kinds():
    pairs = reward_models.preference_pairs(held_out=False, kinds=reward_models.JUDGES["reward"], count=300, seed=1)
    prompts = {pair["chosen"][0]["content"] for pair in pairs}
    assert prompts <= set(world.chat_prompts(held_out=False))
    assert {pair["kind"] for pair in pairs} == set(reward_models.JUDGES["reward"])
    assert all(pair["chosen"] != pair["rejected"] and pair["chosen"][0] == pair["rejected"][0] for pair in pairs)


def test_the_tokenizer_is_made_again_byte_for_byte(tmp_path):
    base_model.make_tokenizer().save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (names.POLICY / name).read_bytes()


def test_build_makes_nothing_where_it_is_asked_for_help_or_mistyped(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(build, "make_tokenizer", lambda: pytest.fail("it builds"))
    monkeypatch.setattr(build, "demo", lambda: pytest.fail("it trains"))
    for words, code in ((["--help"], 0), (["--dmo"], 2), (["--demo", str(tmp_path)], 2), ([str(tmp_path), "x"], 2)):
        with pytest.raises(SystemExit) as ended:
            build.main(words)
        assert ended.value.code == code
    assert "--demo" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_build_demo_makes_the_finished_run_alone(monkeypatch):
    made = []
    monkeypatch.setattr(build, "make_tokenizer", lambda: pytest.fail("it builds"))
    monkeypatch.setattr(build, "demo", lambda: made.append("demo"))
    build.main(["--demo"])
    assert made == ["demo"]
