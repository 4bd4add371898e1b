"""The kit's training path beside a bare TRL script, at a model's full shape: `python benchmarks/full_shape.py`.

Policy and reward model get random weights on the spot, so nothing is downloaded. Their tokenizer splits at spaces and
has a word for every token, so that a text survives being decoded and encoded again. A completion ends where a
log-normal says, as a function of its first token, which a random policy draws evenly: the same work for any engine, in
any order. The kit's side is `grlo_lite.train` itself; TRL's is what its documentation shows, with PEFT and
bitsandbytes. Each runs in a process of its own, under the same cap of GPU memory, so that a larger card stands for a
smaller one.

    python benchmarks/full_shape.py                                      Qwen3-4B with an 8B judge under 24 GiB
    python benchmarks/full_shape.py --shape qwen3-4b-16gb --cap-gib 16
    python benchmarks/full_shape.py --probe                              beside a plan by the rates of this device
    python benchmarks/full_shape.py --longest                            its peak memory at the recipe's longest texts
    python benchmarks/full_shape.py --shape microcosm --steps 2          on a CPU
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.full_shape.bare_trl import trl_side
from benchmarks.full_shape.ours import our_side
from benchmarks.full_shape.random_models import SHAPES, build_models
from benchmarks.full_shape.result import phases_table, summary

SCRIPT = Path(__file__).parents[1] / "full_shape.py"
TASKS = ("models", "ours", "trl")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-4b-24gb")
    parser.add_argument("--steps", type=int, default=3, help="measured steps; one more warms up")
    parser.add_argument("--cap-gib", type=float, help="GPU memory a side may use (default: the shape's)")
    parser.add_argument("--engine", default="auto", help="the kit's rollout.engine")
    parser.add_argument("--backend", default="transformers", choices=("transformers", "unsloth"))
    parser.add_argument("--only", choices=("ours", "trl"), help="leave the other side out")
    parser.add_argument(
        "--longest",
        action="store_true",
        help="the kit's side alone, a step whose prompts and completions are all as long as the recipe of that name "
        "allows, with the sizes that it takes: peak memory by phase beside the plan",
    )
    parser.add_argument("--probe", action="store_true", help="plan by what this device reaches, measured first")
    parser.add_argument("--profile", action="store_true", help="print where the last step's time goes, by operator")
    parser.add_argument("--out", type=Path, default=SCRIPT.parent / "results", help="where the JSON goes")
    parser.add_argument("--side", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.longest:
        arguments.steps, arguments.only = 1, "ours"
    if arguments.side:
        measured = {"models": build_models, "ours": our_side, "trl": trl_side}[arguments.side](arguments)
        (arguments.folder / f"{arguments.side}.json").write_text(json.dumps(measured))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        in_a_process(arguments, "models")
        sides = {side: in_a_process(arguments, side) for side in ("ours", "trl") if arguments.only in (None, side)}
    result = summary(arguments, sides)
    arguments.out.mkdir(parents=True, exist_ok=True)
    named = arguments.shape + ("-longest" if arguments.longest else "")
    path = arguments.out / f"{named}-{'-'.join(result['device'].lower().split())}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{phases_table(result)}\n{path}")
    return 0


def in_a_process(arguments: argparse.Namespace, task: str) -> dict[str, Any]:
    """What one task, in a process of its own, wrote down."""
    own = [sys.executable, str(SCRIPT), "--folder", str(arguments.folder), "--shape", arguments.shape]
    own += ["--steps", str(arguments.steps), "--engine", arguments.engine, "--backend", arguments.backend]
    own += ["--cap-gib", str(arguments.cap_gib)] if arguments.cap_gib else []
    own += [f"--{flag}" for flag in ("profile", "longest", "probe") if getattr(arguments, flag)]
    done = subprocess.run([*own, "--side", task], check=False)
    written = arguments.folder / f"{task}.json"
    if done.returncode:
        raise SystemExit(f"{task} ended with {done.returncode}")
    return json.loads(written.read_text())


if __name__ == "__main__":
    sys.exit(main())
