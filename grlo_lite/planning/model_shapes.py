"""The sizes of a transformer from the numbers of its config.json: parameters, 4-bit bytes, adapter, cache. No torch."""

import json
import os.path
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.models import names
from grlo_lite.planning.cards import NUMBERS, numbers_in
from grlo_lite.recipe.schema import Lora
from grlo_lite.wording import shortened

FAMILIES = ("qwen3", "qwen2", "llama")


ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """A decoder of the Qwen2, Qwen3 or Llama family. `biases` names the linear layers that have one; a model with a
    `score` head is a sequence classifier, whose embedding is never tied to its one row.
    """

    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    family: str = "qwen3"
    biases: tuple[str, ...] = ()

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """A layer's linear modules as (outputs, inputs)."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (queries, self.hidden),
            "k_proj": (keys, self.hidden),
            "v_proj": (keys, self.hidden),
            "o_proj": (self.hidden, queries),
            "gate_proj": (self.mlp, self.hidden),
            "up_proj": (self.mlp, self.hidden),
            "down_proj": (self.hidden, self.mlp),
        }

    @property
    def sides(self) -> tuple[int, int]:
        """The sums of a layer's linear modules' outputs and of their inputs: numbers a token writes and reads there."""
        outputs, inputs = zip(*self.linears.values(), strict=True)
        return sum(outputs), sum(inputs)

    @property
    def linear_parameters(self) -> int:
        """Weights of all layers' linear modules: what NF4 quantizes and what a token is multiplied by."""
        return self.layers * sum(outputs * inputs for outputs, inputs in self.linears.values())

    @property
    def small_parameters(self) -> int:
        """Norms and biases, which stay in floating point."""
        norms = 2 * self.hidden + (2 * self.head_dim if self.family == "qwen3" else 0)
        return self.layers * (norms + sum(self.linears[name][0] for name in self.biases)) + self.hidden

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden

    def head_parameters(self, scores: bool) -> int:
        """Parameters of an output layer with weights of its own: the `score` row, or `lm_head` where it is not tied."""
        return self.hidden if scores else 0 if self.tied else self.embedding_parameters

    def parameters(self, scores: bool = False) -> int:
        """All parameters, a tied output layer counted once, as a language model or, with `scores`, as a reward
        model.
        """
        return self.linear_parameters + self.small_parameters + self.embedding_parameters + self.head_parameters(scores)

    def kv_bytes_a_token(self, width: int) -> int:
        """Keys and values of one token in all layers, at `width` bytes a number."""
        return 2 * self.layers * self.kv_heads * self.head_dim * width

    def adapter_parameters(self, lora: Lora) -> int:
        """A and B of every adapted linear module, in all layers."""
        return sum(self.layers * rows for rows in self.adapter_matrices(lora))

    def adapter_matrices(self, lora: Lora) -> list[int]:
        """The sizes of one layer's LoRA matrices, A and B of each adapted module."""
        adapted = self.linears if lora.targets == "all-linear" else {n: self.linears.get(n) for n in lora.targets}
        sizes = [side for sides in adapted.values() if sides for side in sides]
        return [lora.rank * side for side in sizes]


def nf4_bytes(parameters: int) -> int:
    """What bitsandbytes keeps of one weight in NF4 with double quantization: two weights a byte, a scale byte for each
    64 weights, an fp32 scale for each 256 of these, two code tables of 16 and 256 fp32 numbers, and an fp32 offset.
    """
    blocks = ceil(parameters / 64)
    return ceil(parameters / 2) + blocks + 4 * ceil(blocks / 256) + 4 * (16 + 256 + 1)


def weight_bytes(shape: Shape, quantization: str, width: int, head_width: int, scores: bool = False) -> int:
    """Bytes of a loaded model: `width` of what is not quantized, `head_width` of the `score` or `lm_head` layer."""
    linear = shape.linear_parameters * width
    if quantization == "nf4":
        linear = shape.layers * sum(nf4_bytes(outputs * inputs) for outputs, inputs in shape.linears.values())
    rest = (shape.small_parameters + shape.embedding_parameters) * width
    return linear + rest + shape.head_parameters(scores) * head_width


def shape_of(key: str, name: str) -> Shape:
    """The shape of a model that is shipped (`microcosm`), known (`numbers/models.yaml`), or a directory here.

    Raises BadInput, naming the recipe's `key`, for any other; nothing is fetched.
    """
    path_of = names.path_of_base if key == "model.name" else names.path_of_judge
    folder = os.path.expanduser(path_of(name))
    if os.path.isdir(folder):  # Path.is_dir() raises where a name is longer than the file system takes
        return _read(key, Path(folder) / "config.json")
    known = numbers_in(NUMBERS / "models.yaml")
    if name in known["models"]:
        return Shape(**known["shapes"][known["models"][name]])
    raise BadInput(
        f"{key}={shortened(name)} cannot be planned: its shape is not known here and nothing is fetched for a plan; "
        f"give a directory that holds its config.json, or one of {', '.join(known['models'])}"
    )


def _read(key: str, path: Path) -> Shape:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return from_config(config)
    except FileNotFoundError:
        raise BadInput(f"{key}={str(path.parent)!r} cannot be planned: it holds no config.json") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{path} cannot be read as JSON: {' '.join(str(error).split())}") from None
    except KeyError as error:
        raise BadInput(f"{path} lacks {error}, without which {key} cannot be planned") from None
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from None


def from_config(config: dict[str, Any]) -> Shape:
    """The shape that a config.json describes. Raises ValueError for another family, KeyError where a number is
    missing.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"model_type is {family!r}; the planner knows {', '.join(FAMILIES)}")
    biased = ATTENTION[:3] if family == "qwen2" else ATTENTION if config.get("attention_bias") else ()
    return Shape(
        hidden=config["hidden_size"],
        mlp=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        vocabulary=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
        family=family,
        biases=biased + (MLP if config.get("mlp_bias") else ()),
    )
