"""A run as what others use: `python -m grlo_lite.export RUN --format adapter|merged|gguf|ollama|hub [--to DIR]`.

Reads top to bottom: what is exported, the format's folder, the proof that it is the policy, and, for the Hub, the
upload.
"""

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from grlo_lite.cli import command_line, run_command, settle_libraries
from grlo_lite.errors import BadInput
from grlo_lite.evaluation.tasks import suites
from grlo_lite.evaluation.tasks.task import Asked
from grlo_lite.exporting import card, checking, gguf, hub, ollama, weights
from grlo_lite.exporting.job import DTYPES, Job
from grlo_lite.models import names, trained_adapter

# A format's writer, and the kind of its weights, by which it is proven
FORMATS: dict[str, tuple[Callable[[Job], Path], str]] = {
    "adapter": (weights.adapter, "adapter"),
    "merged": (weights.merged_weights, "merged"),
    "gguf": (gguf.gguf, "gguf"),
    "ollama": (ollama.ollama, "gguf"),
}
QUANTIZATIONS = ("f16", "q8_0", "q4_k_m")
FOLDERS = {"adapter": "exported-adapter"}  # where the format's own name is taken: a run keeps its adapter there
FAILED = 1


def main(argv: list[str] | None = None) -> int:
    """Exports, and returns the exit code: 1 where the proof fails. Raises BadInput where the user has to change
    something.
    """
    arguments = _parsed(argv)
    subject = trained_adapter.find(arguments.run, arguments.base)
    uploads = arguments.format == "hub"
    folder = f"hub/{arguments.content}" if uploads else FOLDERS.get(arguments.format, str(arguments.format))
    job = Job(
        subject,
        arguments.to or subject.run.path / folder,
        arguments.dtype,
        arguments.into,
        arguments.quantization,
        arguments.base_id,
        arguments.repo,
        arguments.content,
        arguments.private,
        arguments.without_evaluation,
        arguments.check,
        arguments.suite,
        arguments.limit,
        arguments.data_dir,
    )
    if uploads:
        hub.require_uploadable(job)
    settle_libraries(offline=not uploads and names.is_here(subject.base))
    if job.into == "original":
        print("into the original base: the adapter was trained on the quantized one, and this is another model")
    asked = checking.asked_of(job)
    write, kind = FORMATS[job.content if uploads else arguments.format]
    if uploads and job.folder.is_dir():
        print(f"{job.folder} is there already and is what is uploaded", flush=True)
        passed = (card.known_proof(job.folder) or {}).get("passed", True)
    else:
        written = write(job)
        print(f"{written} is written", flush=True)
        passed = _proven(job, written, kind, asked)
    if not passed:
        print(f"{job.folder} is kept to be looked at; it is not what was trained", file=sys.stderr)
        return FAILED
    if uploads:
        print(f"uploaded: {hub.upload(job, job.folder)}")
    elif arguments.format == "ollama":
        print(f"next: cd {job.folder} && ollama create NAME -f Modelfile (Ollama itself was not asked)")
    return 0


def _proven(job: Job, folder: Path, kind: str, suite: Asked) -> bool:
    """Whether the export may be used as the policy; says what is known of it."""
    if kind == "adapter":
        print("it is the run's own adapter, byte for byte; nothing was converted")
        return True
    why = checking.runtime_missing(kind) if job.check else "--no-check"
    if why:
        print(f"unproven: {why}")
        return True
    try:
        proof, more = checking.checked(job, folder, kind, suite)
    except BadInput:
        shutil.rmtree(folder)  # it cannot even be asked
        raise
    card.prove(folder, job, kind, proof, more)
    print(f"checked: {proof.said()}")
    if "evaluation" in more:
        gain = more["evaluation"]
        print(
            f"on {gain['n']} questions of {gain['suite']}: accuracy {gain['base']:.3f} (policy) → {gain['tuned']:.3f} "
            f"(export), {gain['difference']:+.3f} [{gain['ci_low']:+.3f}, {gain['ci_high']:+.3f}]"
        )
    return proof.passed


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = command_line("export", "A run's model for other programs, proven against the policy that was trained.")
    parser.add_argument("run", type=Path, metavar="RUN|ADAPTER", help="a run directory, or a PEFT adapter's folder")
    parser.add_argument("--format", required=True, choices=[*FORMATS, "hub"])
    parser.add_argument("--to", type=Path, metavar="DIR", help="default: RUN/FORMAT")
    parser.add_argument("--base", help="the base model, where it is not where the run says")
    parser.add_argument("--dtype", choices=DTYPES, default="fp16", help="of merged weights; bf16 rounds more away")
    into = "the base the adapter is added to: what it was trained on, or the original weights, another model"
    parser.add_argument("--into", choices=["dequantized", "original"], default="dequantized", help=into)
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default="f16", help="of a GGUF; default: %(default)s")
    parser.add_argument("--check", action=argparse.BooleanOptionalAction, default=True, help="prove it; default: yes")
    parser.add_argument("--suite", choices=suites.SUITES, help="compare answers on a suite as well (merged, gguf)")
    parser.add_argument("--limit", type=int, default=200, help="questions a task of the suite; default: %(default)s")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="the suite's questions as files")
    parser.add_argument("--base-id", metavar="OWNER/NAME", help="the base's id on the Hub, if only a folder is known")
    parser.add_argument("--repo", metavar="OWNER/NAME", help="where to upload to (hub)")
    parser.add_argument("--content", choices=["adapter", "merged", "gguf"], default="adapter", help="what to upload")
    parser.add_argument("--private", action="store_true", help="a private repository")
    parser.add_argument("--without-evaluation", action="store_true", help="upload a run that was not evaluated")
    arguments = parser.parse_args(argv)
    if arguments.limit < 2:
        raise BadInput(f"--limit={arguments.limit} is too small; it must be at least 2")
    if arguments.suite and not arguments.check:
        raise BadInput("--suite is a part of the check; leave --no-check out")
    return arguments


if __name__ == "__main__":
    sys.exit(run_command(main))
