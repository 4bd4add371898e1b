"""Base and tuned side by side in a browser: `python app.py [RUN|ADAPTER …] [--demo]`.

Reads top to bottom: what is shown, the model, the page, the server.
"""

import argparse
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grlo_lite.cli import settle_libraries
from grlo_lite.errors import BadInput
from grlo_lite.generation.engine_table import ANSWERING
from grlo_lite.models import names, trained_adapter
from grlo_lite.models.trained_adapter import Subject
from grlo_lite.models.vllm_here import require_engine
from grlo_lite.rundir import layout

if TYPE_CHECKING:
    from grlo_lite.app.comparison.comparison import Comparison

PASSWORD = "GRLO_LITE_AUTH"


def main(argv: list[str] | None = None) -> int:
    """Serves the page until it is interrupted. Raises BadInput where the user has to change something."""
    arguments = _parsed(argv)
    password = _password(arguments)
    found = _subjects(arguments)
    if find_spec("gradio") is None:
        raise BadInput("the app needs Gradio; pip install 'grlo-lite[app]'")
    for subject in found:
        print(f"{subject.run.path}, on {subject.base}", flush=True)
    settle_libraries(offline=names.is_here(found[0].base))
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from grlo_lite.app import server
    from grlo_lite.app.comparison import loading

    listener = server.listening(arguments.host, arguments.port)
    _require_writable(arguments.votes)
    comparison = loading.load(found, _judge_loader(found[0]), arguments.engine)
    comparison.warm_up()
    app = _app(comparison, found, arguments, password)
    port = listener.getsockname()[1]
    shown = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    print(f"ready at http://{shown}:{port}/ – Ctrl-C ends it", flush=True)
    try:
        server.uvicorn_server(app).run(sockets=[listener])  # until it is interrupted
    finally:
        comparison.close()
    return 0


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python app.py", allow_abbrev=False, description="Base and tuned, side by side and blind, in a browser."
    )
    parser.add_argument(
        "subjects", nargs="*", type=Path, metavar="RUN|ADAPTER",
        help="run directories or PEFT adapters of one base model (default: the newest run in runs/, else --demo)",
    )  # fmt: skip
    parser.add_argument("--demo", action="store_true", help="the microcosm's shipped run; needs no GPU and no network")
    parser.add_argument("--base", help="the base model, where it is not where the adapter says")
    parser.add_argument("--engine", choices=ANSWERING, default="kit", help="who answers: the kit's decoder, or vLLM")
    parser.add_argument("--host", default="127.0.0.1", help="beyond this machine only with --auth")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument(
        "--auth", metavar="USER:PASSWORD", help=f"asked for on every route; {PASSWORD} keeps it out of `ps`"
    )
    parser.add_argument("--votes", type=Path, default=layout.RUNS / "votes.jsonl", help="default: %(default)s")
    parser.add_argument("--questions-per-minute", type=int, default=30, help="from one address; default: %(default)s")
    arguments = parser.parse_args(argv)
    if arguments.demo and arguments.subjects:
        raise BadInput(f"--demo shows the shipped run and takes no other; leave out {arguments.subjects[0]} or --demo")
    require_engine(arguments.engine)
    if arguments.port is not None and not 0 <= arguments.port < 65536:
        raise BadInput(f"--port {arguments.port} is none; choose one from 1 to 65535, or 0 for any")
    if arguments.questions_per_minute < 1:
        raise BadInput(f"--questions-per-minute {arguments.questions_per_minute} answers nobody; give at least 1")
    return arguments


def _password(arguments: argparse.Namespace) -> str | None:
    """USER:PASSWORD, or None where none is asked for. Raises BadInput where one is needed."""
    from grlo_lite.app.server import is_loopback

    given = arguments.auth or os.environ.get(PASSWORD)
    if given:
        user, _, password = given.partition(":")
        if not user or not password:
            raise BadInput(f"--auth (or {PASSWORD}) is not USER:PASSWORD; write for instance me:a-long-password")
    elif not is_loopback(arguments.host):
        raise BadInput(
            f"--host {arguments.host} can be reached from other machines, and anybody there could use the model; "
            f"add --auth USER:PASSWORD, or set {PASSWORD}"
        )
    return given or None


def _require_writable(votes: Path) -> None:
    from grlo_lite.app.votes import Votes

    try:
        Votes(votes).require_writable()
    except OSError as error:
        raise BadInput(f"--votes {votes} cannot be written: {error.strerror}; name another file") from None


def _subjects(arguments: argparse.Namespace) -> list[Subject]:
    paths = arguments.subjects or ([names.DEMO] if arguments.demo else [_newest_run() or names.DEMO])
    found = [trained_adapter.find(path, arguments.base) for path in paths]
    return sorted(found, key=lambda subject: subject.trained_by is None)  # a run says what a bare adapter leaves open


def _newest_run() -> Path | None:
    """The run in `runs/` whose adapter was written last."""
    adapters = layout.RUNS.glob("*/adapter/adapter_config.json")
    return max((p.parent.parent for p in adapters), key=lambda run: (run / "adapter").stat().st_mtime, default=None)


def _judge_loader(subject: Subject) -> Callable[[], Any] | None:
    """What loads the reward model that the run was trained with; None where no run says which, or it had none."""
    from grlo_lite.recipe import loading as recipes

    if subject.trained_by is None:
        return None
    recipe = recipes.load(str(subject.run.recipe), [])
    if not recipe.reward.judges:
        return None

    def load() -> Any:
        from grlo_lite.machine import device
        from grlo_lite.models import loading as models

        return models.load_judge(recipe, recipe.reward.judges[0], device.this_device())

    return load


def _app(comparison: "Comparison", found: list[Subject], arguments: argparse.Namespace, password: str | None) -> Any:
    """The ASGI application."""
    from grlo_lite.app import page, server
    from grlo_lite.app.sessions import Desk
    from grlo_lite.app.votes import Votes

    votes, desk = Votes(arguments.votes), Desk(comparison, server.RateLimit(arguments.questions_per_minute))
    runs = {label: s.run.path for label, s in zip(comparison.adapters, found, strict=True)}
    hosts = (*server.LOOPBACK, arguments.host) if password is None else None
    mounted = server.mounted(page.blocks(desk, runs, names.name_of(found[0].base), votes), page.look(), votes.path)
    return server.Gate(mounted, password, hosts, colab="COLAB_RELEASE_TAG" in os.environ)
