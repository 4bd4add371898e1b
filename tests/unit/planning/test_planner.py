"""The planner against real models' bytes, its choices against hand-made cases, the recipes' headers against itself."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from grlo_lite import plan
from grlo_lite.errors import BadInput, DoesNotFit
from grlo_lite.models import names, reward_model
from grlo_lite.models import policy as policies
from grlo_lite.models.backends import Place
from grlo_lite.models.critic import Critic
from grlo_lite.planning import cards, changes, memory, model_shapes, planner, recipe_cards, shown, this_machine
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe import schema
from grlo_lite.recipe.schema import Judge, Lora, Model
from grlo_lite.rundir import layout
from grlo_lite.training import fitting, resuming

GPU_RECIPES = [name for name in recipes.shipped() if not name.startswith("microcosm")]
SHAPE_4B = model_shapes.shape_of("model.name", "Qwen/Qwen3-4B-Base")
PARAMETERS = {
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
}


def config(shape, **more):
    return AutoConfig.for_model(
        shape.family, hidden_size=shape.hidden, intermediate_size=shape.mlp, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim,
        vocab_size=shape.vocabulary, tie_word_embeddings=shape.tied, pad_token_id=0, bos_token_id=0, eos_token_id=0,
        **more,
    )  # fmt: skip


def bytes_of(model):
    return sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_bytes_equal_the_real_models(name):
    shape = model_shapes.shape_of("model.name", name)
    with torch.device("meta"):
        language = AutoModelForCausalLM.from_config(config(shape), dtype=torch.bfloat16)
        judge = AutoModelForSequenceClassification.from_config(config(shape, num_labels=1), dtype=torch.bfloat16)
    assert shape.parameters() == PARAMETERS[name]
    assert model_shapes.weight_bytes(shape, "none", 2, 2) == bytes_of(language)
    assert model_shapes.weight_bytes(shape, "none", 2, 2, scores=True) == bytes_of(judge)


def test_biases_of_qwen2_are_counted():
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 100, "tie_word_embeddings": False}  # fmt: skip
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **small))
    assert model_shapes.from_config(small | {"model_type": "qwen2"}).parameters() == sum(
        p.numel() for p in made.parameters()
    )


def test_nf4_bytes_by_hand():
    # 128 × 512 weights: 32,768 packed, 1,024 scales, 4 scales of scales, tables of 16 and 256, one offset
    assert model_shapes.nf4_bytes(128 * 512) == 32_768 + 1_024 + 4 * 4 + 4 * 16 + 4 * 256 + 4


def stored(model):
    """Bytes of all weights, the quantization's own included, LoRA's left out; and of the adapter."""
    total, adapter = 0, 0
    for name, p in model.named_parameters():
        if "lora_" in name:
            adapter += p.numel() * p.element_size()
            continue
        total += p.numel() * p.element_size()
        state = getattr(p, "quant_state", None)
        if state is not None:
            tensors = [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
            total += sum(t.numel() * t.element_size() for t in tensors)
    return total, adapter


def test_bytes_equal_the_microcosm_as_it_is_loaded():
    planned = planner.plan(recipes.load("microcosm", []), this_machine.cpu_card()).vram["update"]
    lora = Lora(rank=16, alpha=32)
    loaded = policies.load(Model(name="microcosm"), lora, Place(torch.device("cpu")), 256, 0)
    weights, adapter = stored(loaded.model)
    assert planned["weights"] == pytest.approx(weights, rel=0.01)
    assert planned["adapter"] == adapter
    judge = reward_model.load(Judge(name="microcosm"), torch.device("cpu"), 512, 8192)
    assert planned["reward weights"] == pytest.approx(stored(judge.model)[0], rel=0.01)
    trained = [p for p in loaded.model.parameters() if p.requires_grad]
    for p in trained:
        p.grad = torch.zeros_like(p)
    adam = torch.optim.AdamW(trained)
    adam.step()
    moments = sum(t.numel() * t.element_size() for s in adam.state.values() for t in s.values() if t.ndim)
    assert planned["optimizer"] == moments + adapter  # the gradients are as large as the adapter


@pytest.mark.parametrize("kind", ["adapter", "head"])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_the_critic_is_counted_to_the_byte(kind, optimizer):
    words = ["algorithm.name=ppo", f"algorithm.critic.kind={kind}", f"optimizer.name={optimizer}"]
    ppo, grpo = recipes.load("microcosm", words), recipes.load("microcosm", words[2:])
    loaded = policies.load(ppo.model, ppo.lora, Place(torch.device("cpu")), 256, 0)
    critic = Critic(loaded.model, ppo)
    alone = torch.nn.ParameterList(critic.parameters())
    for parameter in alone:
        parameter.requires_grad_(True)
    planned, without = (planner.plan(r, this_machine.cpu_card()).vram for r in (ppo, grpo))
    size = sum(p.numel() * p.element_size() for p in alone)
    assert {parts["critic"] for parts in planned.values()} == {size}
    added = planned["update"]["optimizer"] - without["update"]["optimizer"]
    assert added == moments(alone, optimizer)
    assert planned["critic"]["optimizer"] == planned["rollout"]["optimizer"] + size  # its gradients
    assert "critic" not in without
    assert "logits" not in planned["critic"]


def test_the_critic_of_qwen3_4b_is_a_quarter_of_a_gigabyte_and_its_passes_cost_seconds():
    card = cards.known_card("rtx4090")
    ppo, grpo = (recipes.load("qwen3-4b-24gb-ppo", words) for words in ([], ["algorithm.name=grpo", *GROUPS]))
    head = recipes.load("qwen3-4b-24gb-ppo", ["algorithm.critic.kind=head"])
    assert planner.plan(ppo, card).vram["critic"]["critic"] == 4 * (66_060_288 + 2560 + 1)
    assert planner.plan(head, card).vram["critic"]["critic"] == 4 * (2560 + 1)
    critics = {kind: planner.plan(r, card).seconds["update"] for kind, r in (("ppo", ppo), ("head", head))}
    plain = planner.plan(grpo, card).seconds["update"]
    assert 1.3 * plain < critics["ppo"] < 2.2 * plain
    assert plain < critics["head"] < critics["ppo"]


GROUPS = ["rollout.group_size=8"]


@pytest.mark.parametrize("card", ["rtx4090", "rtx3090", "l4", "a10g"])
@pytest.mark.parametrize("name", ["qwen3-4b-24gb-ppo", "qwen3-4b-24gb-paper"])
def test_ppo_fits_every_card_of_24_gb(name, card):
    planned = planner.plan(recipes.load(name, []), cards.known_card(card))
    assert planned.fits
    assert planned.peak_bytes <= 22.5 * 2**30


@pytest.mark.parametrize(("name", "gib", "bar"), [("qwen3-4b-24gb", 24, 22.5), ("qwen3-4b-16gb", 16, 15.0)])
def test_the_recipes_leave_the_room_they_should(name, gib, bar):
    planned = planner.plan(recipes.load(name, []), cards.known_card(f"VRAM={gib}"))
    assert planned.fits
    assert planned.peak_bytes <= bar * 2**30


@pytest.mark.parametrize("card", ["rtx4090", "rtx3090", "l4", "a10g"])
def test_the_24_gb_recipe_fits_every_card_of_that_size(card):
    assert planner.plan(recipes.load("qwen3-4b-24gb", []), cards.known_card(card)).fits


@pytest.mark.parametrize("name", GPU_RECIPES)
def test_a_recipes_header_is_what_the_planner_says(name):
    lines = recipes.shipped()[name].read_text().splitlines()
    assert lines[0] == f"# python -m grlo_lite.train {name}"
    assert shown.header(name, recipes.load(name, [])) in lines


def test_parts_add_up_to_the_peak():
    planned = planner.plan(recipes.load("qwen3-4b-24gb", []), cards.known_card("l4"))
    assert set(planned.vram) == set(memory.PHASES)
    assert planned.peak_bytes == max(sum(parts.values()) for parts in planned.vram.values())
    assert all(set(parts) <= set(memory.PARTS) for parts in planned.vram.values())


def test_what_does_not_fit_is_told_its_cheapest_change(capsys):
    assert plan.main(["qwen3-4b-24gb", "--gpu", "VRAM=8"]) == 3
    change = capsys.readouterr().out.rsplit("the cheapest change that fits: ", 1)[1].split()
    assert plan.main(["qwen3-4b-24gb", *change, "--gpu", "VRAM=8"]) == 0


def bytes_needed(wanted, phase, sizes):
    parts = memory.vram(wanted, memory.models(wanted), cards.known_card("rtx4090"), sizes)[phase]
    return sum(parts.values())


def card_of_bytes(count):
    return replace(cards.known_card("rtx4090"), vram=count, reserve=0)


def test_the_largest_micro_batch_that_fits_is_the_cheapest_change():
    wanted = recipes.load("qwen3-4b-24gb", ["optimizer.micro_batch=64", "algorithm.updates_per_rollout=1"])
    for micro, larger in ((8, 16), (2, 4), (1, 2)):
        room = bytes_needed(wanted, "update", memory.Sizes(1, larger, 1024, "compact"))
        card = card_of_bytes(room - 1)  # a byte too few for the next divisor of 64
        assert changes.cheapest_change(wanted, card) == f"optimizer.micro_batch={micro}"
        assert changes.cheapest_change(wanted, replace(card, vram=room)) == f"optimizer.micro_batch={larger}"
    assert changes.cheapest_change(recipes.load("qwen3-4b-24gb", []), cards.known_card("rtx4090")) is None


def test_what_is_learnt_changes_last_and_alone_where_that_is_enough():
    """Where two changes are needed the sizes are as large as fit beside the one that alters what is learnt."""
    wanted = recipes.load("qwen3-4b-24gb", ["optimizer.micro_batch=8", "optimizer.name=adamw"])
    eight_bit = recipes.load("qwen3-4b-24gb", ["optimizer.micro_batch=8"])
    saved = memory.optimizer_bytes(wanted, SHAPE_4B) - memory.optimizer_bytes(eight_bit, SHAPE_4B)
    # of 33,030,144 numbers of rank 32 in 36 layers: 8 bytes each, or 2 and an fp32 scale for each 256, twice
    assert memory.optimizer_bytes(wanted, SHAPE_4B) == 8 * 66_060_288
    assert memory.optimizer_bytes(eight_bit, SHAPE_4B) == 2 * 66_060_288 + 8 * 66_060_288 // 256
    card = card_of_bytes(bytes_needed(wanted, "update", memory.Sizes(1, 1, 1024, "compact")) - saved)
    assert changes.cheapest_change(wanted, card) == "optimizer.micro_batch=1 optimizer.name=adamw_8bit"
    card = card_of_bytes(bytes_needed(wanted, "update", memory.Sizes(1, 2, 1024, "compact")) - saved)
    assert changes.cheapest_change(wanted, card) == "optimizer.micro_batch=1"  # the adapter's learning stays as it was


def test_another_model_comes_with_its_own_revision():
    change = changes.cheapest_change(recipes.load("qwen3-4b-24gb", []), cards.known_card("VRAM=5"))
    assert change is not None
    pairs = dict(pair.split("=") for pair in change.split())
    assert pairs["reward.revision"] == "main"
    small = recipes.load("qwen3-1.7b-12gb", []).model
    assert (pairs["model.name"], pairs["model.revision"]) == (small.name, small.revision)


def test_engines_are_planned_as_they_decode():
    card, tokens = cards.known_card("a100-80"), 1024 + 1024

    def rollout(*words):
        wanted = recipes.load("qwen3-4b-24gb", list(words))
        return planner.plan(wanted, card), memory.vram(wanted, memory.models(wanted), card, sizes)["rollout"]

    a_row = 2 * 36 * 8 * 128 * 2 * tokens  # keys and values of 36 layers, 8 heads, 128 wide, two bytes
    sizes = memory.Sizes(64, 1, 1024, "generate")
    generate, parts = rollout("rollout.engine=generate", "backend=transformers")
    assert (generate.engine, generate.rows_at_once) == ("generate", 64)
    assert parts["KV cache"] == 64 * a_row + 64 * a_row // 36 * (1 + 32 // 8)  # a layer is copied, and spread
    sizes = memory.Sizes(64, 1, 1024, "folded")
    folded, parts = rollout()
    assert (folded.engine, folded.rows_at_once) == ("folded", 64)
    assert parts["KV cache"] == 64 * a_row
    assert parts["weights"] - 2 * 3_633_315_840 == memory.policy_bytes(
        recipes.load("qwen3-4b-24gb", []), SHAPE_4B, card
    )
    assert folded.seconds["rollout"] < rollout("rollout.engine=compact")[0].seconds["rollout"]
    assert rollout("rollout.rows_at_once=8")[0].rows_at_once == 8
    vllm, _ = rollout("backend=unsloth", "rollout.engine=fast_inference", "rollout.vllm_memory=0.25")
    assert sum(vllm.vram["rollout"][part] for part in ("weights", "KV cache")) == int(0.25 * card.vram)
    assert vllm.rows_at_once < 64
    with pytest.raises(BadInput, match="merge the adapter into vLLM's"):
        rollout("rollout.engine=fast_inference", "backend=transformers")


def test_activations_that_are_kept_are_planned_where_they_are():
    wanted = recipes.load("qwen3-4b-24gb", ["optimizer.micro_batch=1"])
    kept = recipes.load("qwen3-4b-24gb", ["optimizer.micro_batch=1", "optimizer.gradient_checkpointing=false"])
    card = cards.known_card("a100-80")
    again, whole = (planner.plan(r, card).vram["update"]["activations"] for r in (wanted, kept))
    matrix, between = 2 * 9728 * 2560, 2048 * (36 + 2) * 2560 * 2
    assert whole - matrix == 36 * (again - matrix - between)
    assert planner.plan(kept, card).seconds["update"] < planner.plan(wanted, card).seconds["update"]


@pytest.mark.parametrize(
    ("device", "gib", "bf16", "expected"),
    [
        ("NVIDIA GeForce RTX 4090", 23.5, True, "qwen3-4b-24gb"),
        ("NVIDIA L4", 22.16, True, "qwen3-4b-24gb"),
        ("Tesla T4", 14.74, False, "qwen3-4b-16gb"),
        ("NVIDIA A100-SXM4-80GB", 79.15, True, "qwen3-4b-80gb"),
        ("NVIDIA L40S", 44.39, True, "qwen3-8b-48gb"),
        ("NVIDIA GeForce RTX 3060", 11.75, True, "qwen3-1.7b-12gb"),
        ("Some card", 7.7, True, "qwen3-0.6b-8gb"),
        ("Some card", 3.8, True, "microcosm"),
    ],
)
def test_a_card_gets_a_recipe_that_fits_it(device, gib, bf16, expected):
    card = cards.recognized(device, int(gib * 2**30), bf16)
    assert recipe_cards.recipe_for(card) == expected
    assert card.vram == int(gib * 2**30)
    assert planner.plan(recipes.load(expected, []), card).fits


def test_a_cpu_gets_the_microcosm_which_fits():
    card = this_machine.cpu_card()
    assert recipe_cards.recipe_for(card) == "microcosm"
    assert planner.plan(recipes.load("microcosm", []), card).fits


def test_auto_sizes_become_the_plans():
    wanted = recipes.load("qwen3-4b-24gb", [])
    planned = planner.plan(wanted, cards.known_card("rtx4090"))
    made = planner.resolved(wanted, planned)
    assert made.optimizer.micro_batch == planned.micro_batch
    assert made.reward.tokens_per_batch == planned.reward_tokens
    assert schema.Recipe.model_validate(made.model_dump()) == made


def test_prices_can_be_ones_own(tmp_path, monkeypatch):
    mine = tmp_path / "prices.yaml"
    mine.write_text("rtx4090: 2.0\n")
    monkeypatch.setenv("GRLO_LITE_PRICES", str(mine))
    planned = planner.plan(recipes.load("qwen3-4b-24gb", []), cards.known_card("rtx4090"))
    assert planned.usd == pytest.approx(2 * planned.hours)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpu", "gtx"], "is not known; choose one of rtx4090"),
        (["--gpu", "VRAM=much"], "holds no size"),
        (["model.name=nobody/nothing", "--gpu", "t4"], "its shape is not known here"),
        (["a", "b"], "is a second recipe"),
    ],
)
def test_bad_input_is_one_line(words, told):
    with pytest.raises(BadInput, match=told) as refused:
        plan.main(words)
    assert "\n" not in str(refused.value)


def test_it_answers_in_two_seconds_without_torch():
    program = "import sys; from grlo_lite.plan import main; main(['qwen3-4b-24gb', '--gpu', 'l4'])"
    program += "; print('torch' in sys.modules)"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert time.monotonic() - began < 2
    assert done.stdout.endswith("False\n")


def test_all_recipes_on_all_cards(capsys):
    assert plan.main(["--all"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*recipes.shipped(), *cards.known_cards()])


def test_a_resumed_run_uses_the_commits_it_began_with(tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipes.dumped(recipes.load("qwen3-4b-16gb", ["model.revision=main"])))
    commits = {"Skywork/Skywork-Reward-V2-Qwen3-1.7B": "b" * 40}
    facts = {"recipe": "x", "model_commit": "a" * 40, "reward_model_commits": commits}
    (tmp_path / "environment.json").write_text(json.dumps(facts))
    resumed = resuming.resumed_recipe(layout.RunDir(tmp_path), None, [])
    assert (resumed.model.revision, resumed.reward.revision) == ("a" * 40, "b" * 40)


def test_train_refuses_what_cannot_fit_and_takes_the_plans_sizes():
    wanted = recipes.load("qwen3-4b-24gb", [])
    with pytest.raises(DoesNotFit, match="the cheapest change that fits: "):
        fitting.fitted(wanted, cards.known_card("VRAM=8"), resuming=False)
    sized = fitting.fitted(wanted, cards.known_card("rtx4090"), resuming=False)
    assert "auto" not in (sized.optimizer.micro_batch, sized.reward.tokens_per_batch)
    assert fitting.fitted(wanted, cards.known_card("rtx4090"), resuming=True) == wanted
    unknown = recipes.load("qwen3-4b-24gb", ["model.name=nobody/nothing"])
    assert fitting.fitted(unknown, cards.known_card("t4"), resuming=False) == unknown


RANDOM_SHAPES = [
    ({"model_type": "qwen3", "hidden_size": 192, "intermediate_size": 320, "num_hidden_layers": 3,
      "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": True}, 5),
    ({"model_type": "llama", "hidden_size": 256, "intermediate_size": 448, "num_hidden_layers": 2,
      "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": False}, 24),
    ({"model_type": "qwen2", "hidden_size": 128, "intermediate_size": 576, "num_hidden_layers": 1,
      "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}, 8),
]  # fmt: skip


@pytest.mark.parametrize(("numbers", "rank"), RANDOM_SHAPES, ids=[n["model_type"] for n, _ in RANDOM_SHAPES])
def test_bytes_equal_random_models_as_they_are_loaded(numbers, rank, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(names.POLICY)
    tokenizer.save_pretrained(tmp_path)
    family, numbers = numbers["model_type"], {k: v for k, v in numbers.items() if k != "model_type"}
    made = AutoConfig.for_model(family, **numbers, vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=0)
    AutoModelForCausalLM.from_config(made).save_pretrained(tmp_path)
    lora = Lora(rank=rank, alpha=2 * rank, targets=("q_proj", "down_proj") if rank == 8 else "all-linear")
    loaded = policies.load(Model(name=str(tmp_path)), lora, Place(torch.device("cpu")), 64, 0)
    shape = model_shapes.shape_of("model.name", str(tmp_path))
    weights, adapter = stored(loaded.model)
    assert model_shapes.weight_bytes(shape, "nf4", 4, 4) == weights
    assert 4 * shape.adapter_parameters(lora) == adapter
    for name in ("adamw", "adamw_8bit"):
        wanted = recipes.load("microcosm", [f"optimizer.name={name}"]).model_copy(update={"lora": lora})
        assert memory.optimizer_bytes(wanted, shape) == moments(loaded.model, name)


def moments(model, name):
    """Bytes of Adam's state: PyTorch's after a step, bitsandbytes' as it makes it before the first one."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if name == "adamw_8bit":
        adam = AdamW8bit(trained)
        for p in trained:
            p.grad = torch.zeros_like(p)
            adam.state[p] = {}
            adam.init_state(adam.param_groups[0], p, 0, 0)
    else:
        for p in trained:
            p.grad = torch.zeros_like(p)
        adam = torch.optim.AdamW(trained)
        adam.step()
    states = [state for p in trained for state in adam.state[p].items()]
    return sum(t.numel() * t.element_size() for key, t in states if torch.is_tensor(t) and t.ndim and "qmap" not in key)


def test_without_a_reward_model_none_is_planned(capsys):
    """The plan with the judge, less the judge: no weights, no scoring, no seconds; other phases keep their parts."""
    card, alone = cards.known_card("rtx4090"), ["reward.name=null", "reward.verifiable=mathematics"]
    judged, free = (planner.plan(recipes.load("qwen3-4b-24gb", words), card) for words in ([], alone))
    assert judged.vram["load"]["reward weights"] > 4 * 2**30
    assert all(parts["reward weights"] == 0 for parts in free.vram.values())
    assert free.vram["reward"]["reward activations"] == 0
    assert (free.seconds["reward"], free.reward_tokens) == (0, 0)
    assert free.vram["load"]["weights"] == judged.vram["load"]["weights"]
    recipe = recipes.load("qwen3-4b-24gb", alone)
    assert planner.resolved(recipe, free).reward.tokens_per_batch == "auto"
    assert "no reward model" in shown.text(recipe, card, free)
    assert changes.cheapest_change(recipe, cards.known_card("VRAM=5"))  # and no judge among what it changes
    assert "reward." not in (changes.cheapest_change(recipe, cards.known_card("VRAM=5")) or "")


def test_vllm_is_planned_by_part_and_asleep_where_it_sleeps():
    recipe, card = recipes.load("qwen3-4b-24gb", ["rollout.engine=vllm"]), cards.known_card("rtx4090")
    planned = planner.plan(recipe, card)
    assert planned.engine == "vllm"
    assert planned.vram["rollout"]["vLLM weights"] == 2 * 4_022_468_096  # Qwen3-4B in 16 bits
    assert planned.vram["rollout"]["KV cache"] == planned.rows_at_once * memory.row_bytes(recipe, SHAPE_4B, card)
    for phase in ("reward", "update"):
        assert "vLLM weights" not in planned.vram[phase]
        assert planned.vram[phase]["vLLM asleep"] == 2**29
    assert "vLLM is awake in the rollout alone" in shown.text(recipe, card, planned)
