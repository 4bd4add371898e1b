"""vLLM in this process, on the policy's own base: the adapter goes over as it is and is never merged into 4 bits.

vLLM reseeds, replaces `torch.set_num_threads` and writes into the environment, so it is only ever called inside
`untouched`. Its weights are the policy's quantized base, dequantized once: the checkpoint that the base was quantized
from is another model (on SmolLM2 its log-probabilities differ by 0.47 a token).
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch

from grlo_lite.errors import BadInput, DoesNotFit, EngineFailed
from grlo_lite.generation.decoding import Answers, Watch
from grlo_lite.generation.dense_base import dense_tensors, save_dense_base
from grlo_lite.generation.engine_table import VLLM_BLOCK, vllm_rank
from grlo_lite.generation.request import Sampling
from grlo_lite.generation.twin import base_of, free_host_bytes
from grlo_lite.machine.device import free_bytes, is_out_of_memory
from grlo_lite.machine.untouched import untouched

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, where its weights can be written
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the threads stay as the run has them
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
}
RAM_DISK = Path("/dev/shm")
BATCHED_TOKENS = 4096  # of prompts that vLLM reads together on a CPU
# by vLLM where it dies, is of another version, or does not know a model
RAISED = (RuntimeError, ValueError, OSError, AssertionError, TypeError, LookupError, AttributeError, ImportError)


@dataclass(frozen=True)
class Room:
    """How much a vLLM has to hold: completions at once, tokens of one with its prompt, and bytes of its cache, of which
    it takes no more than it has use for.
    """

    rows: int
    tokens: int
    cache_bytes: int


@dataclass(frozen=True)
class Said:
    """A completion's tokens, its stop token the last where one ended it, and their log-probabilities at the
    temperature, before top-p leaves any out.
    """

    tokens: list[int]
    logps: list[float]


class Vllm:
    """One vLLM that answers as a policy with its adapter, or as its base.

    With `folded`, each `take` writes base and adapter, summed in fp32 and rounded once, into vLLM's own tensors, so
    that an adapter costs nothing a token and the base is not at hand; otherwise the adapter goes beside the base.
    Raises EngineFailed where vLLM cannot be started with the model, and DoesNotFit where its cache holds no completion.
    """

    def __init__(self, model: Any, rank: int, room: Room, temperature: float, folded: bool = False):
        self.model, self.folded, self.room = model, folded, fitting(model, room)
        self.swaps = 0
        self.request: Any = None  # the adapter that is beside the base
        self.sleeps = model.device.type == "cuda"
        self.llm: Any = None
        with _from_ram_disk(_dense_bytes(model)) as folder:
            save_dense_base(model, compute_dtype(model), folder)
            with vllms_own("be started"):
                self.llm = _started(folder, model, rank, self.room, temperature, folded)
        self.asleep = False
        self.sleep()

    def take(self, adapter: str = "default") -> None:
        """Takes an adapter as it is now; the one before it is dropped, with what the cache holds of it."""
        self.wake()
        self.swaps += 1
        if self.folded:
            tensors = dense_tensors(self.model, compute_dtype(self.model), folded=True)
            with vllms_own("take the weights"):
                self.llm.llm_engine.collective_rpc("reload_weights", kwargs={"weights_iterator": tensors})
                self.llm.reset_prefix_cache()
            return
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        before = self.request
        with _from_ram_disk(0) as folder:
            state = get_peft_model_state_dict(self.model, adapter_name=adapter)
            save_file({k: v.cpu().contiguous() for k, v in state.items()}, folder / "adapter_model.safetensors")
            self.model.peft_config[adapter].save_pretrained(folder)
            with vllms_own("take the adapter"):
                from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

                # by its name the cache tells whose keys it holds, by its id vLLM which weights it has: both are new
                self.request = LoRARequest(f"step-{self.swaps}", self.swaps, str(folder))
                if before is not None:
                    self.llm.llm_engine.remove_lora(before.lora_int_id)
                self.llm.llm_engine.add_lora(self.request)

    def said(
        self,
        prompts: list[list[int]],
        ends: list[int],
        sampling: Sampling,
        seeds: Sequence[int],
        adapted: bool | Sequence[bool] = True,
        watch: Watch | None = None,
    ) -> list[Said]:
        """A completion a prompt, in order; the same for the same seeds, one a prompt. A prompt that several have is
        read once. `adapted` is whether the adapter answers, a prompt or all of them; `watch` is told of each token, as
        `decode` tells it.
        """
        self.wake()
        beside = [adapted] * len(prompts) if isinstance(adapted, bool) else adapted
        with vllms_own("answer"):
            from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
            from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

            settings = partial(
                SamplingParams,
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                stop_token_ids=ends,
                logprobs=0,  # the sampled token's alone
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY if watch is None else RequestOutputKind.DELTA,
            )
            engine, found = self.llm.llm_engine, [Said([], []) for _ in prompts]
            # in one batch, vLLM's kernels for a CPU give the adapter to rows without one as well (vllm #48421)
            for kinds in ((False, True),) if self.model.device.type == "cuda" else ((False,), (True,)):
                for row, (ids, seed, with_it) in enumerate(zip(prompts, seeds, beside, strict=True)):
                    if with_it in kinds:
                        asked = {"type": "token", "prompt_token_ids": ids}
                        lora = self.request if with_it else None
                        engine.add_request(str(row), asked, settings(seed=seed), lora_request=lora)
                _step(engine, found, watch)
            return found

    def wake(self) -> None:
        if self.asleep:
            with vllms_own("wake up"):
                self.llm.wake_up()
            self.asleep = False

    def sleep(self) -> None:
        """Leaves the GPU to what comes next: weights go to main memory, the cache is dropped. Nothing on a CPU."""
        if self.sleeps and not self.asleep:
            with vllms_own("sleep"):
                self.llm.sleep(level=1)
            self.asleep = True

    def close(self) -> None:
        """Gives back what vLLM holds, its process group included."""
        if self.llm is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory  # pyright: ignore[reportMissingImports]

        with untouched(ENVIRONMENT):
            self.llm.llm_engine.engine_core.shutdown()
            self.llm = self.request = None
            cleanup_dist_env_and_memory()


def _step(engine: Any, found: list[Said], watch: Watch | None) -> None:
    """Has all requests, whose ids are their rows' numbers, answered to their ends; adds what they say to `found`."""
    while engine.has_unfinished_requests():
        said = {int(output.request_id): output.outputs[0] for output in engine.step()}
        for row, output in said.items():
            found[row].tokens.extend(output.token_ids)
            logps = zip(output.logprobs, output.token_ids, strict=True)
            found[row].logps.extend(at[token].logprob for at, token in logps)
        if watch is not None and said:
            told = [(row, token) for row, output in said.items() for token in output.token_ids]
            ended = watch([row for row, _ in told], [token for _, token in told])
            engine.abort_request([str(row) for row in ended if not said[row].finished()])


def filled(answers: Answers, said: Sequence[Said]) -> None:
    """Puts completions into the first rows of answers."""
    for row, one in enumerate(said):
        length = len(one.tokens)
        answers.said_BT[row, :length] = torch.tensor(one.tokens, device=answers.said_BT.device)
        answers.logp_BT[row, :length] = torch.tensor(one.logps, device=answers.said_BT.device)
        answers.length_B[row], answers.done_B[row] = length, True


def _started(folder: Path, model: Any, rank: int, room: Room, temperature: float, folded: bool) -> Any:
    """vLLM's `LLM` on a checkpoint in this process."""
    from vllm import LLM  # pyright: ignore[reportMissingImports]

    options: dict[str, Any] = {"enforce_eager": True, "block_size": VLLM_BLOCK}
    if model.device.type == "cuda":
        # what of the card is another's, the policy's or the judges', is not vLLM's to count
        free, total = torch.cuda.mem_get_info(model.device)
        options = {"enable_sleep_mode": True, "gpu_memory_utilization": round(0.95 * free / total, 3)}
    else:
        # a seeded request whose prompt is read in two parts dies on a CPU, whose generators know no offset; so each is
        # read whole, as many a step as these tokens hold
        options |= {
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(BATCHED_TOKENS, room.tokens, room.rows),
        }
    if not folded:
        options |= {"enable_lora": True, "max_lora_rank": vllm_rank(rank), "max_loras": 1, "max_cpu_loras": 1}
    return LLM(
        str(folder),
        skip_tokenizer_init=True,
        generation_config="vllm",  # the checkpoint's own would change how answers are drawn
        dtype=str(compute_dtype(model)).removeprefix("torch."),
        max_model_len=room.tokens,
        max_num_seqs=room.rows,
        kv_cache_memory_bytes=room.cache_bytes,
        enable_prefix_caching=True,
        logprobs_mode="raw_logprobs" if temperature in (0, 1) else "processed_logprobs",
        **options,
    )


def compute_dtype(model: Any) -> torch.dtype:
    """What the policy computes in, and so vLLM."""
    return model.get_input_embeddings().weight.dtype


def _dense_bytes(model: Any) -> int:
    """Of the checkpoint, at most."""
    parameters = base_of(model).num_parameters()
    return parameters * compute_dtype(model).itemsize


def token_bytes(model: Any) -> int:
    """Bytes of a token's keys and values in all layers."""
    from grlo_lite.generation.kv_cache import kv_bytes

    config = model.config.get_text_config()
    return config.num_hidden_layers * kv_bytes(config) * compute_dtype(model).itemsize // 2


def row_bytes(model: Any, tokens: int) -> int:
    """Bytes of a completion's cache, in whole blocks."""
    return ceil(tokens / VLLM_BLOCK) * VLLM_BLOCK * token_bytes(model)


def fitting(model: Any, room: Room) -> Room:
    """The room with no more cache than all its rows have use for, one block more than they fill being vLLM's own.

    Raises DoesNotFit where it does not hold one completion.
    """
    config = model.config.get_text_config()
    if (most := getattr(config, "max_position_embeddings", None)) is not None and room.tokens > most:
        raise BadInput(
            f"rollout.engine=vllm: prompts.max_tokens + rollout.max_tokens is {room.tokens:,}, and the model reads at "
            f"most {most:,} tokens; lower one of them"
        )
    a_row, spare = row_bytes(model, room.tokens), VLLM_BLOCK * token_bytes(model)
    if room.cache_bytes < a_row + spare:
        raise DoesNotFit(
            f"vLLM's cache of {room.cache_bytes / 2**20:,.0f} MiB does not hold one completion, whose {room.tokens:,} "
            f"tokens take {(a_row + spare) / 2**20:,.0f} MiB; raise rollout.vllm_memory or lower rollout.max_tokens"
        )
    return replace(room, cache_bytes=min(room.cache_bytes, room.rows * a_row + spare))


def cache_bytes(model: Any, share: float) -> int:
    """A share of the memory that is free: on a GPU beside vLLM's weights, which come there first."""
    if model.device.type != "cuda":
        return int(share * free_host_bytes())
    return max(0, int(share * (free_bytes(model.device) - _dense_bytes(model))))


@contextmanager
def _from_ram_disk(size: int) -> Iterator[Path]:
    """A folder for so many bytes that is gone afterwards, in main memory where that has room."""
    import shutil

    in_memory = RAM_DISK.is_dir() and shutil.disk_usage(RAM_DISK).free > size + 2**28 and free_host_bytes() > 2 * size
    with tempfile.TemporaryDirectory(prefix="grlo-lite-", dir=RAM_DISK if in_memory else None) as folder:
        yield Path(folder)


def _dead() -> tuple[type[Exception], ...]:
    """What vLLM raises where its engine has died, which is none of Python's own."""
    try:
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError  # pyright: ignore
    except ImportError:
        return ()
    return EngineDeadError, EngineGenerateError


@contextmanager
def vllms_own(what: str) -> Iterator[None]:
    """Inside, vLLM does as it likes; outside nothing is changed by it. What it raises leaves as EngineFailed, in one
    line, but for memory that runs out.
    """
    try:
        with untouched(ENVIRONMENT):
            yield
    except (*RAISED, *_dead()) as error:
        if is_out_of_memory(error):
            raise
        raise EngineFailed(f"vLLM could not {what}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line, by its root cause where it wraps one."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said[:300]
