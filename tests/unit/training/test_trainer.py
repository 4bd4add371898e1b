"""What is handed to TRL's trainers, and what is changed in the batches they make."""

from types import SimpleNamespace

import pytest
import torch

from grlo_lite.machine import device as device_module
from grlo_lite.models import chat_template, names
from grlo_lite.models import loading as models
from grlo_lite.models import policy as policies
from grlo_lite.models.backends import Place
from grlo_lite.monitoring.halvings import Halvings
from grlo_lite.monitoring.pace import Pace
from grlo_lite.monitoring.recorder import Recorder
from grlo_lite.prompts import prepared
from grlo_lite.recipe import loading as recipes
from grlo_lite.recipe.schema import Lora, Model
from grlo_lite.rewards.reward_function import RewardFunction, handed_on
from grlo_lite.rundir import files, layout
from grlo_lite.rundir.layout import RunDir
from grlo_lite.training import loop, micro_batches, trl_inside
from grlo_lite.training import trainer as trainer_room
from grlo_lite.training.trainer import Materials, _shared_options, composed_trainer, engine_options

CPU = torch.device("cpu")


def batch(prompt_mask, completion_mask, **more):
    prompt_mask, completion_mask = torch.tensor(prompt_mask), torch.tensor(completion_mask)
    return {
        "prompt_ids": prompt_mask * 7,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_mask * torch.arange(1, completion_mask.shape[1] + 1),
        "completion_mask": completion_mask,
        "num_items_in_batch": torch.tensor(9),
        **{key: torch.tensor(value) for key, value in more.items()},
    }


def test_a_micro_batch_loses_the_columns_that_no_row_uses():
    cut = micro_batches.trimmed(
        batch(
            [[0, 0, 1], [0, 1, 1]], [[1, 1, 0], [1, 0, 0]], advantages=[0.5, -0.5], old_per_token_logps=[[1.0] * 3] * 2
        )
    )
    assert cut["prompt_ids"].tolist() == [[0, 7], [7, 7]]
    assert cut["prompt_mask"].tolist() == [[0, 1], [1, 1]]
    assert cut["completion_ids"].tolist() == [[1, 2], [1, 0]]
    assert cut["completion_mask"].tolist() == [[1, 1], [1, 0]]
    assert cut["old_per_token_logps"].shape == (2, 2)
    assert cut["advantages"].tolist() == [0.5, -0.5]
    assert cut["num_items_in_batch"] == 9


def test_micro_batches_hold_completions_of_like_length_longest_first():
    lengths, advantages = [[1, 3], [2, 3]], [[0.1, 0.3], [0.2, 0.4]]
    micros = [
        batch([[1], [1]], [[1] * n + [0] * (3 - n) for n in pair], advantages=values)
        for pair, values in zip(lengths, advantages, strict=True)
    ]
    done = micro_batches.by_length(micros)
    assert [micro["completion_mask"].sum(1).tolist() for micro in done] == [[3, 3], [2, 1]]
    assert [micro["advantages"].tolist() for micro in done] == [pytest.approx([0.3, 0.4]), pytest.approx([0.2, 0.1])]
    assert all(micro["num_items_in_batch"] == 9 for micro in done)


@pytest.mark.parametrize(
    ("change", "updates"),
    [
        ("algorithm.loss=dr_grpo", 2),
        ("algorithm.loss=grpo", 1),
        ("algorithm.name=rloo", 1),
    ],
)
def test_the_update_is_the_same_with_and_without_the_padding(change, updates, tmp_path, monkeypatch):
    """Two steps in micro-batches of four; what is left of a difference is the order of fp32 sums."""
    words = [change, f"algorithm.updates_per_rollout={updates}", "budget.steps=2", "optimizer.micro_batch=4"]
    ours, widths = adapter_after(words, tmp_path / "ours")
    monkeypatch.setattr(trl_inside, "arrange_micro_batches", lambda *_: None)
    trls, padded = adapter_after(words, tmp_path / "trls")
    fresh = weights(policies.load(Model(name="microcosm"), Lora(rank=16, alpha=32), Place(CPU), 304, 0))
    assert (ours - trls).norm() < 0.02 * (trls - fresh).norm()
    assert len(widths) == len(padded)
    assert sum(widths) < sum(padded)


def adapter_after(words, folder, before=lambda trainer: None):
    """The adapter's weights in one row after a run of TRL's trainer, and the columns of each micro-batch."""
    once = "algorithm.updates_per_rollout=1"
    values = recipes.load("microcosm", [once, *words, "evaluation.heldout_prompts=0", "prompts.decontaminate=false"])
    made = policies.load(Model(name="microcosm"), values.lora, Place(CPU), 304, 0)
    judges = [("microcosm", 1.0, models.load_judge(values, values.reward.judges[0], CPU))]
    rewards = RewardFunction(judges, chat_template.stop_token_ids(made.tokenizer), values.reward, 8, 0)
    run = layout.create(folder, "microcosm", "")
    recorder = Recorder(run, values, lambda: 0.0, lambda step: {}, Halvings(run), Pace(1, None))
    rows = prepared.prompt_rows(values).train
    torch.manual_seed(0)
    widths = []
    watched = made.model.register_forward_pre_hook(
        lambda _, __, inputs: widths.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    materials = Materials(made, handed_on(rewards, recorder.take), rows, Place(CPU))
    trainer = composed_trainer(values, materials, run.partial, [recorder], micro_batches.micro_batch(values, CPU))
    before(trainer)
    trainer.train()
    watched.remove()
    return weights(made), widths


def weights(made):
    return torch.cat([p.detach().flatten() for p in made.model.parameters() if p.requires_grad])


@pytest.mark.parametrize(
    ("dtype", "flags"), [("bfloat16", (True, False)), ("float16", (False, True)), ("float32", (False, False))]
)
def test_mixed_precision_follows_the_gpu(dtype, flags, tmp_path, monkeypatch):
    """fp16 before Ampere, with a loss scale of its own in Trainer; the adapter stays in fp32, which that needs."""
    monkeypatch.setattr(device_module, "float_dtype", lambda device, cpu_dtype: getattr(torch, dtype))
    values = recipes.load("microcosm", [])
    options = _shared_options(values, tmp_path, SimpleNamespace(type="cuda"), 4)
    assert (options["bf16"], options["fp16"]) == flags
    assert options["gradient_checkpointing"]
    assert not options["use_cpu"]


def test_vllm_is_told_the_stop_tokens():
    tokenizer = chat_template.load_tokenizer(str(names.POLICY), "main")
    options = engine_options("fast_inference", tokenizer)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    assert options == {"use_vllm": True, "vllm_mode": "colocate", "generation_kwargs": {"stop_token_ids": ends}}
    assert engine_options("folded", tokenizer) == {}


def test_gradient_checkpointing_changes_nothing_but_memory(tmp_path):
    words = ["budget.steps=1"]
    plain, _ = adapter_after(words, tmp_path / "plain")
    again, _ = adapter_after([*words, "optimizer.gradient_checkpointing=true"], tmp_path / "again")
    assert torch.equal(plain, again)


def test_in_16_bits_the_whole_adapter_learns(tmp_path, monkeypatch):
    """As on a GPU: bf16 around NF4, recomputed activations, and an adapter that TRL would have made bf16 as well."""
    monkeypatch.setattr(device_module, "float_dtype", lambda device, cpu_dtype="": torch.bfloat16)
    words = ["budget.steps=1", "rollout.batch=16", "optimizer.micro_batch=4", "optimizer.gradient_checkpointing=true"]
    before = policies.load(Model(name="microcosm"), Lora(rank=16, alpha=32), Place(CPU), 304, 0)
    after, _ = adapter_after([*words, "optimizer.learning_rate=1e-5"], tmp_path / "r")
    assert after.dtype == torch.float32
    b_matrices = torch.cat(
        [torch.full((p.numel(),), "lora_B" in n) for n, p in before.model.named_parameters() if p.requires_grad]
    )
    assert (after != weights(before))[b_matrices].float().mean() > 0.99  # in bf16 most updates round to nothing


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_masked_completions_neither_move_the_baseline_nor_the_loss(algorithm, tmp_path):
    """Advantages by hand, of the answers that ended: GRPO's less their mean, RLOO's less the mean of the others."""
    values = recipes.load(
        "microcosm",
        [
            f"algorithm.name={algorithm}",
            "algorithm.updates_per_rollout=1",
            "reward.truncated.mode=mask",
            "rollout.max_tokens=32",
            "budget.steps=1",
        ],
    )
    made = policies.load(Model(name="microcosm"), values.lora, Place(CPU), 304, 0)
    judges = [("microcosm", 1.0, models.load_judge(values, values.reward.judges[0], CPU))]
    rewards = RewardFunction(judges, chat_template.stop_token_ids(made.tokenizer), values.reward, 8, 0)
    batches = []
    materials = Materials(made, handed_on(rewards, batches.append), prepared.prompt_rows(values).train, Place(CPU))
    trainer = composed_trainer(values, materials, tmp_path, [], 32)
    torch.manual_seed(0)
    rows = [row for row in trainer.train_dataset.select(range(4)) for _ in range(8)]
    output = trainer._generate_and_score_completions(rows)
    masked, raw = torch.tensor(batches[0].masked_B), torch.tensor(batches[0].raw_B)
    assert 0 < masked.sum() < 32
    assert output["completion_mask"].any(1).tolist() == (~masked).tolist()
    for start in range(0, 32, 8):
        scores = raw[start : start + 8][~masked[start : start + 8]]
        others = scores.mean() if algorithm == "grpo" else (scores.sum() - scores) / (len(scores) - 1)
        expected = torch.zeros(8, dtype=scores.dtype)
        expected[~masked[start : start + 8]] = (scores - others).nan_to_num()
        assert output["advantages"][start : start + 8].tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_an_update_that_overflows_in_fp16_is_a_line_and_not_the_end(tmp_path):
    """Infinite gradients under Accelerate's loss scaler, which unscales before it clips and then skips the update."""

    before = []

    def overflowing(trainer):
        before.append(weights(trainer).clone())
        accelerator = trainer.accelerator
        accelerator.scaler = torch.amp.GradScaler("cpu")
        clip = accelerator.clip_grad_norm_

        def unscaled_and_clipped(*words, **options):  # as Accelerate does where it trains in fp16, which no CPU can
            accelerator.scaler.unscale_(trainer.optimizer.optimizer)
            return clip(*words, **options)

        accelerator.clip_grad_norm_ = unscaled_and_clipped
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda gradient: torch.full_like(gradient, float("inf")))

    words = ["budget.steps=2", "rollout.batch=8", "rollout.max_tokens=8", "optimizer.micro_batch=8"]
    after, _ = adapter_after(words, tmp_path / "r", overflowing)
    lines = files.read_lines(tmp_path / "r" / "metrics.jsonl")
    assert [(line["grad_norm"], line["skipped_update"]) for line in lines] == [(None, 1), (None, 1)]
    assert torch.equal(after, before[0])
    recipe = recipes.load("microcosm", ["algorithm.updates_per_rollout=1"])
    ended = {"wall_seconds": 1.0}
    run = RunDir(tmp_path / "r")
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_bytes(b"")
    said = loop._summary(recipe, run, ended)
    assert (said["steps"], said["skipped_updates"], said["learnt_steps"]) == (2, 2, 0)
    twice = recipes.load("microcosm", ["algorithm.updates_per_rollout=2"])  # of two updates a step, one was made
    assert loop._summary(twice, run, ended)["learnt_steps"] == 2


def test_the_loss_scale_begins_small():
    scaler = torch.amp.GradScaler("cpu")
    trainer_room.begin_with_a_small_loss_scale(scaler)
    assert scaler.get_scale() == 1024
    assert scaler.scale(torch.ones(())).item() == 1024
    trainer_room.begin_with_a_small_loss_scale(None)  # not in fp16


def test_the_trainer_in_fp16_has_that_scale(tmp_path, monkeypatch):
    class Found(Exception):
        pass

    def stop(scaler):
        raise Found

    monkeypatch.setattr(trainer_room, "begin_with_a_small_loss_scale", stop)
    with pytest.raises(Found):
        adapter_after(["budget.steps=1"], tmp_path / "r")


def test_one_process_trains_on_one_gpu(tmp_path, monkeypatch):
    """Two visible GPUs: Trainer would double the batch, and 64 rollouts would be made for 32."""
    from trl import GRPOConfig

    made = GRPOConfig.__init__

    def with_two_gpus(self, *words, **options):
        made(self, *words, **options)
        self._n_gpu = 2

    monkeypatch.setattr(GRPOConfig, "__init__", with_two_gpus)
    trainers = []
    words = ["budget.steps=1", "rollout.batch=8", "rollout.max_tokens=8", "optimizer.micro_batch=8"]
    adapter_after(words, tmp_path / "r", trainers.append)
    assert trainers[0].args.train_batch_size == 8
    assert files.read_lines(tmp_path / "r" / "metrics.jsonl")[0]["rollouts"] == 8
