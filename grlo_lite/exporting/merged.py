"""The adapter folded into 16-bit weights of its base, one tensor in memory at a time.

The policy's base is the quantized one. What is written is therefore its dequantized weights plus the adapter, summed in
fp32 and rounded once; added to the original weights, the adapter meets another model than it was trained on.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grlo_lite.errors import BadInput
from grlo_lite.models import chat_template
from grlo_lite.models.trained_adapter import Subject
from grlo_lite.rundir import files

Into = Literal["dequantized", "original"]
SHARD_BYTES = 2**30
ADAPTER_FILE = "adapter_model.safetensors"
INDEX = "model.safetensors.index.json"
# What of a PEFT adapter would have to be more than a product of two matrices added to a layer's weight
UNMERGED = ("use_dora", "lora_bias", "fan_in_fan_out", "modules_to_save", "target_parameters", "layer_replication")


@dataclass(frozen=True)
class Merge:
    """How a merge is made: the dtype that is written, the base that the adapter is added to, the dtype the base was
    quantized from, and the device that it is quantized on.
    """

    dtype: Any
    into: Into
    trained_in: Any
    device: Any


class Adapter:
    """A LoRA adapter's file, read a layer at a time. Raises BadInput for a kind that is no plain LoRA."""

    def __init__(self, folder: Path):
        from safetensors import safe_open

        self.config = files.read_json(folder / "adapter_config.json")
        odd = [key for key in UNMERGED if self.config.get(key)]
        if self.config.get("peft_type") != "LORA" or odd:
            what = ", ".join(odd) or str(self.config.get("peft_type"))
            raise BadInput(f"{folder} is no plain LoRA adapter ({what}); export it by --format adapter")
        self.file = safe_open(folder / ADAPTER_FILE, framework="pt")
        self.names = {key.removeprefix("base_model.model."): key for key in list(self.file.keys())}
        self.used: set[str] = set()

    def _tensor(self, name: str) -> Any:
        self.used.add(name)
        return self.file.get_tensor(self.names[name]).float()

    def changed(self, module: str, weight: Any) -> Any:
        """A layer's weight, shape (out, in), with what the adapter does to it, in fp32."""
        if f"{module}.lora_A.weight" in self.names:
            down, up = self._tensor(f"{module}.lora_A.weight"), self._tensor(f"{module}.lora_B.weight")
            weight = weight.float().addmm(up, down, alpha=self._scaling(module, len(down)))
        rows = f"{module}.token_adapter.trainable_tokens_delta"
        if rows in self.names:
            weight = weight.clone()
            weight[self._token_ids(module)] = self._tensor(rows).to(weight.dtype)
        return weight

    def _scaling(self, module: str, rank: int) -> float:
        patterns = self.config.get("alpha_pattern") or {}
        alpha = next((v for k, v in patterns.items() if module.endswith(k)), self.config["lora_alpha"])
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)

    def _token_ids(self, module: str) -> list[int]:
        ids = self.config["trainable_token_indices"]
        return ids if isinstance(ids, list) else next(v for name, v in ids.items() if module.endswith(name))

    def require_all_used(self) -> None:
        """Raises BadInput where a part of the adapter met no weight of the base: it is another model's."""
        left = sorted(set(self.names) - self.used)
        if left:
            raise BadInput(
                f"{len(left)} tensors of the adapter meet none of the base, such as {left[0]}: it was trained on "
                "another model; name its own by --base"
            )


def merged(subject: Subject, folder: Path, merge: Merge) -> None:
    """Writes the merged model as a folder of its own: safetensors, config, tokenizer, template and stop tokens.

    Raises BadInput where the base is not here, is quantized in its files, or is not the one of the adapter.
    """
    from tqdm import tqdm

    source = base_folder(subject)
    adapter = Adapter(subject.adapter)
    quantized, tied, shapes = _modules(source, subject)
    _require_same_shapes(adapter, shapes)
    writer = _Shards(folder, merge.dtype)
    for name, weight in tqdm(_base_tensors(source, tied), total=len(shapes) - tied, unit="tensor", desc="merge"):
        module = name.removesuffix(".weight")
        weight = weight.to(merge.trained_in) if weight.is_floating_point() else weight
        if module in quantized and merge.into == "dequantized":
            weight = _through_nf4(weight, merge)
        writer.add(name, adapter.changed(module, weight))
    adapter.require_all_used()
    writer.finish()
    _write_settings(subject, source, folder, str(merge.dtype).removeprefix("torch."))


def bytes_of_merge(subject: Subject) -> int:
    """What the merged weights take on the disk, at two bytes a number. Raises BadInput where the base is not here."""
    from safetensors import safe_open

    total = 0
    for file in sorted(base_folder(subject).glob("*.safetensors")):
        with safe_open(file, framework="numpy") as opened:
            for name in list(opened.keys()):
                size = 1
                for length in opened.get_slice(name).get_shape():
                    size *= length
                total += 2 * size
    return total


def base_folder(subject: Subject) -> Path:
    """The folder of the base's files: its own, or the snapshot that the Hub's client has or fetches."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    path = Path(subject.base)
    if not path.is_dir():
        wanted = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
        try:
            path = Path(snapshot_download(subject.base, revision=commit(subject), allow_patterns=wanted))
        except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
            said = " ".join(str(error).split())[:200]
            raise BadInput(f"the base model {subject.base} cannot be had ({said}); name a folder by --base") from None
    if not list(path.glob("*.safetensors")):
        raise BadInput(f"the base model {path} holds no safetensors; name the folder that does by --base")
    if "quantization_config" in files.read_json(path / "config.json"):
        raise BadInput(f"the base model {path} is quantized in its own files; name the unquantized one by --base")
    return path


def commit(subject: Subject) -> str:
    """The commit of the Hub that the run was trained on, where it says one."""
    known = files.read_json(subject.run.environment) if subject.run.environment.is_file() else {}
    return known.get("model_commit") or subject.revision


def _modules(source: Path, subject: Subject) -> tuple[set[str], bool, dict[str, tuple[int, ...]]]:
    """The layers that training had quantized, whether the output layer is the embedding, and every weight's shape."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    head = model.get_output_embeddings()
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    linear -= {name for name, module in model.named_modules() if module is head}
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = bool(config.tie_word_embeddings)
    return (linear if subject.quantization == "nf4" else set()), tied, shapes


def _require_same_shapes(adapter: Adapter, shapes: dict[str, tuple[int, ...]]) -> None:
    for name, key in adapter.names.items():
        if not name.endswith("lora_B.weight"):
            continue
        layer = name.removesuffix(".lora_B.weight")
        out = adapter.file.get_slice(key).get_shape()[0]
        if (shape := shapes.get(f"{layer}.weight")) is not None and shape[0] != out:
            raise BadInput(
                f"{layer} of the base has {shape[0]} rows and the adapter {out}: it was trained on another model; "
                "name its own by --base"
            )


def _base_tensors(source: Path, tied: bool) -> Iterator[tuple[str, Any]]:
    """Each tensor by name. A file is opened anew for each, or what was mapped of it would stay in memory."""
    from safetensors import safe_open

    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
        for name in names:
            if tied and name == "lm_head.weight":
                continue
            with safe_open(file, framework="pt") as opened:
                yield name, opened.get_tensor(name)


def _through_nf4(weight: Any, merge: Merge) -> Any:
    """The weight as the policy computed with it: quantized as it is loaded for training, and dequantized."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(
        weight.to(merge.device).contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    return dequantize_4bit(packed, state).to("cpu")


class _Shards:
    """Writes tensors in files of at most about a GiB, and the index of them; a folder that has the index, or the one
    file, is whole.
    """

    def __init__(self, folder: Path, dtype: Any):
        self.folder, self.dtype = folder, dtype
        self.held: dict[str, Any] = {}
        self.size = self.total = 0
        self.written: list[list[str]] = []

    def add(self, name: str, tensor: Any) -> None:
        tensor = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        if not tensor.isfinite().all():
            raise BadInput(f"{name} has numbers beyond {self.dtype}; export with --dtype bf16")
        size = tensor.numel() * tensor.element_size()
        if self.held and self.size + size > SHARD_BYTES:
            self._write()
        self.held[name] = tensor.contiguous()
        self.size, self.total = self.size + size, self.total + size

    def _write(self) -> None:
        from safetensors.torch import save_file

        save_file(self.held, self.folder / f"part-{len(self.written)}.safetensors", {"format": "pt"})
        self.written.append(list(self.held))
        self.held, self.size = {}, 0

    def finish(self) -> None:
        self._write()
        count, places = len(self.written), {}
        for number, names in enumerate(self.written):
            final = "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            (self.folder / f"part-{number}.safetensors").rename(self.folder / final)
            places |= dict.fromkeys(names, final)
        if count > 1:
            index = {"metadata": {"total_size": self.total}, "weight_map": places}
            files.write_json(self.folder / INDEX, index)


def _write_settings(subject: Subject, source: Path, folder: Path, dtype: str) -> None:
    """Config, generation settings and tokenizer: those of the policy, so that anybody's loader stops where it did."""
    from transformers import GenerationConfig

    tokenizer = saved_tokenizer(subject)
    tokenizer.save_pretrained(folder)
    stop_ids = chat_template.stop_token_ids(tokenizer)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    ends = {"eos_token_id": stop_ids, "pad_token_id": tokenizer.pad_token_id}
    files.write_json(folder / "config.json", {**config, "dtype": dtype, **ends})
    GenerationConfig(**ends, do_sample=True).save_pretrained(folder)
    for licence in (*source.glob("LICENSE*"), *source.glob("NOTICE*")):
        shutil.copyfile(licence, folder / licence.name)


def saved_tokenizer(subject: Subject) -> Any:
    """The tokenizer that the run kept with its adapter, the base's own where it kept none."""
    if (subject.adapter / "tokenizer_config.json").is_file():
        return chat_template.load_tokenizer(str(subject.adapter), "main")
    return chat_template.load_tokenizer(subject.base, commit(subject))
