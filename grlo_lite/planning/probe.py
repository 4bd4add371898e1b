"""What this device reaches, measured in about a minute, for the planner: `python -m grlo_lite.plan --probe`."""

import datetime
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from bitsandbytes import matmul_4bit
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from transformers import AutoConfig, AutoModelForCausalLM

from grlo_lite.errors import BadInput
from grlo_lite.generation.decoding import Answers, Prompts, decode
from grlo_lite.generation.linears import in_onednns_layout, laid_anew, product
from grlo_lite.generation.request import Sampling
from grlo_lite.generation.twin import twin
from grlo_lite.machine.device import computes_in_bf16, float_dtype, this_device
from grlo_lite.machine.versions import installed
from grlo_lite.models import policy as policies
from grlo_lite.models.backends import Place
from grlo_lite.planning import fused, memory, probes, this_machine, timing
from grlo_lite.planning.cards import Card
from grlo_lite.planning.model_shapes import Shape
from grlo_lite.recipe.schema import Recipe
from grlo_lite.rundir import files

SECONDS = 2.0  # for which each measurement is repeated, at least three times


TINY = Shape(hidden=64, mlp=128, layers=2, heads=1, kv_heads=1, head_dim=64, vocabulary=256, tied=True)


DEPTHS = (2, 8)  # layers of the tiny model, between which a layer's launches show


SAID = 24  # tokens that it says


LAYERS = 2  # of the recipe's own width


WORDS = 1024  # vocabulary of these


ROWS = 16  # of a token's products, beside one


MOST_WEIGHTS = 10**9  # of these products


def probe(recipe: Recipe, card: Card, shape: Shape) -> Path:
    """Measures this device with layers of the policy's shape, says what it measures, and files it for later plans.

    Returns the file. Raises BadInput where that file is damaged, or where it cannot be written.
    """
    device, random_state = this_device(), torch.get_rng_state()
    dtype, name = float_dtype(device, recipe.cpu_dtype), device_name(recipe.cpu_dtype)
    vram = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else card.vram
    others = [row for row in probes.probes() if not probes.same_device(row, name, vram)]
    _file(others)  # a minute is not to be spent on what cannot be kept
    transformers.utils.logging.disable_progress_bar()
    rates: dict[str, float] = {}

    def found(**measured: float) -> None:
        for name, value in measured.items():
            rates[name] = value
            unit, words = probes.RATES[name]
            print(f"  {value / unit:9.2f} {words}", flush=True)

    found(flops=matmul_flops(device, dtype))
    found(**token_products(shape, device, dtype))
    found(dequantized_a_second=dequantized_weights(device, dtype), drawn_a_second=drawn_logits(shape, device, dtype))
    found(**fused_products(shape, device, dtype, rates["few_rows_flops"]))
    with tempfile.TemporaryDirectory() as folder:
        found(**host_seconds(recipe, device, Path(folder)))
        so_far, few = replace(card, **rates), replace(shape, layers=LAYERS, vocabulary=WORDS)
        model = adapted_model(recipe, few, device, Path(folder))
        found(activation_bytes_a_second=activation_bytes(recipe, few, so_far, model))
        if device.type == "cuda":
            found(activation_share=kept_share(recipe, few, so_far, model))
            found(logit_bytes=logit_bytes(shape, device), context=context_bytes())
        del model
    torch.set_rng_state(random_state)
    row = {
        "device": name,
        "vram": vram,
        "torch": installed("torch"),
        "date": datetime.date.today().isoformat(),
        "width": shape.hidden,
        "rates": {name: rates.get(name, getattr(card, name)) for name in probes.RATES},
    }
    return _file([*others, row])


def _file(rows: list[dict[str, Any]]) -> Path:
    path = probes.probes_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, {"probes": rows})
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}; name another file in GRLO_LITE_PROBES") from None
    return path


def device_name(cpu_dtype: str) -> str:
    """What a probe of this device is filed under."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return this_machine.cpu_name(computes_in_bf16(cpu_dtype))


def median_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run, the median of at least three, after one that warms up."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    taken: list[float] = []
    run()
    wait()
    while len(taken) < 3 or (sum(taken) < SECONDS and len(taken) < 1000):
        began = time.perf_counter()
        run()
        wait()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def matmul_flops(device: torch.device, dtype: Any) -> float:
    """Floating-point operations a second in products of large square matrices."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / median_seconds(lambda: a @ a, device)


def token_products(shape: Shape, device: torch.device, dtype: Any) -> dict[str, float]:
    """What one token reaches in its products with as many weights as the model has, or as fit into MOST_WEIGHTS: bytes
    of weights a second for one row, and FLOPs a second for the rows after it.
    """
    count = shape.mlp * shape.hidden
    copies = max(1, min(shape.linear_parameters, MOST_WEIGHTS) // count)
    matrices = [torch.randn(shape.mlp, shape.hidden, device=device, dtype=dtype) for _ in range(copies)]
    matrices.append(torch.randn(shape.vocabulary, shape.hidden, device=device, dtype=dtype))
    weights = sum(matrix.numel() for matrix in matrices)
    matrices = [in_onednns_layout(matrix) if laid_anew(matrix) else matrix for matrix in matrices]  # as a decoder's lie

    def seconds(rows: int) -> float:
        x = torch.randn(rows, shape.hidden, device=device, dtype=dtype)
        return median_seconds(lambda: [product(x, matrix) for matrix in matrices], device)

    one, few = seconds(1), seconds(ROWS)
    return {
        "bytes_a_second": dtype.itemsize * weights / one,
        "few_rows_flops": 2 * (ROWS - 1) * weights / max(few - one, 0.01 * few),
    }


def dequantized_weights(device: torch.device, dtype: Any) -> float:
    """Weights dequantized a second, of a large matrix in NF4 with double quantization."""
    size = 4096 if device.type == "cuda" else 1024
    dense = torch.randn(size, size, device=device, dtype=dtype)
    packed, state = quantize_4bit(dense, quant_type="nf4", compress_statistics=True)
    return size**2 / median_seconds(lambda: dequantize_4bit(packed, state), device)


def fused_products(shape: Shape, device: torch.device, dtype: Any, few_rows_flops: float) -> dict[str, float]:
    """Weights a second in products of 1, 16 and 32 rows with an NF4 matrix of the policy's MLP, less what the rows' own
    FLOPs take: bitsandbytes multiplies few rows without dequantizing, and chooses by itself.
    """
    weights = shape.mlp * shape.hidden
    dense = torch.randn(shape.mlp, shape.hidden, device=device, dtype=dtype)
    packed, state = quantize_4bit(dense, quant_type="nf4", compress_statistics=True)
    del dense
    found: dict[str, float] = {}
    for rows in fused.ROWS:
        x = torch.randn(rows, shape.hidden, device=device, dtype=dtype)
        with torch.no_grad():
            taken = median_seconds(partial(matmul_4bit, x, packed, state), device)
        found[f"fused_{rows}"] = weights / max(taken - 2 * rows * weights / few_rows_flops, 0.05 * taken)
    return found


def drawn_logits(shape: Shape, device: torch.device, dtype: Any) -> float:
    """Logits a second among which 32 rows draw a token each."""
    logits = torch.randn(32, shape.vocabulary, device=device, dtype=dtype)
    drawn = median_seconds(lambda: torch.multinomial(logits.float().softmax(-1), 1), device)
    return logits.numel() / drawn


def adapted_model(recipe: Recipe, shape: Shape, device: torch.device, folder: Path) -> Any:
    """A random model of this shape in the recipe's quantization, with the recipe's adapter, as a run would load it."""
    numbers = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0, "max_position_embeddings": 8192}
    config = AutoConfig.for_model(
        shape.family, hidden_size=shape.hidden, intermediate_size=shape.mlp, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim,
        vocab_size=shape.vocabulary, tie_word_embeddings=shape.tied, **numbers,
    )  # fmt: skip
    where = folder / f"{shape.hidden}-{shape.layers}"
    with torch.device(device):
        made = AutoModelForCausalLM.from_config(config, dtype=float_dtype(device, recipe.cpu_dtype))
    made.save_pretrained(where)
    del made
    adapted = policies.load_with_transformers(
        recipe.model.model_copy(update={"name": str(where)}),
        recipe.lora,
        Place(device, cpu_dtype=recipe.cpu_dtype),
        0,
        [],
    )
    policies.trainable_in_fp32(adapted)
    return adapted


def host_seconds(recipe: Recipe, device: torch.device, folder: Path) -> dict[str, float]:
    """Seconds of the host by the card's fields: for a layer, for one without NF4 and adapter, for a token beside its
    layers; where there is next to nothing to compute.
    """
    by_engine = {}
    models = [adapted_model(recipe, replace(TINY, layers=depth), device, folder) for depth in DEPTHS]
    for engine in ("compact", "folded"):
        shallow, deep = (said_seconds(model, engine) / SAID for model in models)
        a_layer = max(deep - shallow, 1e-7) / (DEPTHS[1] - DEPTHS[0])
        by_engine[engine] = a_layer, max(shallow - DEPTHS[0] * a_layer, 1e-7)
    (layer, token), (dense_layer, _) = by_engine.values()
    return {"layer_seconds": layer, "dense_layer_seconds": dense_layer, "token_seconds": token}


def said_seconds(model: Any, engine: str) -> float:
    """Seconds of SAID tokens of two completions that a model samples by an engine."""
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]], device=model.device)
    asked = Prompts(ids, torch.ones_like(ids, dtype=torch.bool), [TINY.vocabulary], 0)  # an end that is never drawn
    with twin(model, engine == "folded") as made:
        return median_seconds(lambda: decode(made, asked, Answers(asked, Sampling(SAID)), 2), model.device)


def batch_of(shape: Shape, device: torch.device) -> tuple[int, int]:
    """Rows and tokens a row of an update that shows what activations cost."""
    if device.type == "cuda":
        return 4, 1024
    return (32, 64) if shape.hidden <= 1024 else (4, 64)


def update(model: Any, shape: Shape) -> None:
    """A forward and a backward pass through the layers, under a padding mask."""
    rows, tokens = batch_of(shape, model.device)
    ids = torch.randint(shape.vocabulary, (rows, tokens), device=model.device)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    in_16_bits = torch.autocast(model.device.type, model.dtype) if model.dtype != torch.float32 else None
    with in_16_bits or nullcontext():  # as Trainer has it
        said = model.get_base_model().model(input_ids=ids, attention_mask=mask, use_cache=False)
    said.last_hidden_state.float().mean().backward()


def activation_bytes(recipe: Recipe, shape: Shape, card: Card, model: Any) -> float:
    """Bytes a second of those that timing.py counts for a layer's element-wise kernels: what an update takes beyond
    its matrix products, its weights and, on a CPU, the host.
    """
    model.train()
    taken = median_seconds(lambda: update(model, shape), model.device)
    rows, tokens = batch_of(shape, model.device)
    work = timing.update_work(recipe, shape, card, rows * tokens, tokens, 1)
    rest = work.flops / card.flops + 2 * timing.weights_seconds(recipe.model.quantization, shape, card)
    if not card.cuda:
        rest += 2 * shape.layers * card.layer_seconds
    return work.traffic / max(taken - rest, 0.05 * taken)


def peak_bytes(run: Callable[[], object]) -> int:
    """Bytes on the GPU at the peak of a run, beyond what is allocated before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def kept_share(recipe: Recipe, shape: Shape, card: Card, model: Any) -> float:
    """The share of what memory.py counts that a layer keeps for its backward pass; with gradient checkpointing."""
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    update(model, shape)  # from here on the gradients are there
    rows, tokens = batch_of(shape, model.device)
    peak = peak_bytes(lambda: update(model, shape))
    between = rows * tokens * (shape.layers + 2) * shape.hidden * card.float_bytes
    layer = peak - between - memory.largest_matrix(shape, card.float_bytes)
    return max(layer, 1) / (rows * tokens * memory.layer_bytes(shape, card))


def logit_bytes(shape: Shape, device: torch.device) -> float:
    """Bytes of a completion's logit while TRL's loss and entropy go forward and backward."""
    from trl.trainer.utils import selective_log_softmax_and_entropy

    tokens, dtype = 512, float_dtype(device)
    hidden = torch.randn(1, tokens + 1, 64, device=device, dtype=dtype, requires_grad=True)
    head = torch.randn(shape.vocabulary, 64, device=device, dtype=dtype)
    said = torch.zeros(1, tokens, device=device, dtype=torch.long)

    def loss() -> None:
        logits = (hidden @ head.T).float()[:, :-1]  # Accelerate makes a model's outputs fp32
        selected, _ = selective_log_softmax_and_entropy(logits, said, entropy_requires_grad=False)
        selected.sum().backward()

    loss()
    return peak_bytes(loss) / (tokens * shape.vocabulary)


def context_bytes() -> int:
    """Bytes of the card that are taken and are no tensor of this process: its context, and whatever else runs there."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return max(total - free - torch.cuda.memory_reserved(), 1)
