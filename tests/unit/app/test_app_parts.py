"""What the app is made of, without a browser: votes, rendering, charts, the door."""

import asyncio
import base64
import hashlib
import json
import os
import re
import shutil
import stat
import time
from types import SimpleNamespace

import gradio as gr
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from grlo_lite.app import components, rendering, server, votes
from grlo_lite.app.command import main
from grlo_lite.app.comparison.comparison import ARMS
from grlo_lite.app.comparison.values import Adapter, Progress, Refused, Reply
from grlo_lite.app.components import Shared
from grlo_lite.app.sessions import Desk
from grlo_lite.app.tabs.blind import BlindTab
from grlo_lite.app.votes import Votes
from grlo_lite.errors import BadInput
from grlo_lite.models import names
from grlo_lite.reporting import charts, sections
from grlo_lite.reporting.html import html_table, note


def vote(winner="tuned", sha256="a" * 64, **more):
    return {"winner": winner, "adapter_sha256": sha256, "adapter": "run", **more}


class TestVotes:
    def test_what_was_appended_is_read_in_order(self, tmp_path):
        file = Votes(tmp_path / "deep" / "votes.jsonl")
        for number in range(3):
            file.append(vote(question=f"{number}: a\nline, “quoted”"))
        read, broken = file.read()
        assert [v["question"][0] for v in read] == ["0", "1", "2"]
        assert broken == 0
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o600

    def test_a_torn_line_costs_itself_only(self, tmp_path):
        file = Votes(tmp_path / "votes.jsonl")
        file.append(vote())
        with file.path.open("ab") as handle:
            handle.write(b'{"winner": "tun')
        file.append(vote("base"))
        read, broken = file.read()
        assert [v["winner"] for v in read] == ["tuned", "base"]
        assert broken == 1

    def test_lines_that_are_no_votes_are_counted_and_passed_over(self, tmp_path):
        file = Votes(tmp_path / "votes.jsonl")
        rows = [[], "text", 3, {"winner": "nobody", "adapter_sha256": "a"}, {"winner": "tie"}, vote("tie")]
        file.path.write_bytes(b"\n".join(json.dumps(row).encode() for row in rows) + b"\n\xff\xfe\n")
        read, broken = file.read()
        assert [v["winner"] for v in read] == ["tie"]
        assert broken == 6

    def test_a_vote_that_the_disk_did_not_take_whole_is_an_error(self, tmp_path, monkeypatch):
        file = Votes(tmp_path / "votes.jsonl")
        whole = os.write
        monkeypatch.setattr(os, "write", lambda handle, data: whole(handle, data[:7]))
        with pytest.raises(OSError, match="only a part"):
            file.append(vote())
        monkeypatch.undo()
        file.append(vote("base"))
        assert [v["winner"] for v in file.read()[0]] == ["base"]

    @pytest.mark.parametrize("broken", ["fsync", "newline"])
    def test_a_vote_that_failed_late_leaves_nothing(self, tmp_path, monkeypatch, broken):
        file = Votes(tmp_path / "votes.jsonl")
        file.append(vote("tie"))

        def fail(*_):
            raise OSError(5, "Input/output error")

        whole = os.write
        if broken == "fsync":
            monkeypatch.setattr(os, "fsync", fail)
        else:
            monkeypatch.setattr(os, "write", lambda handle, data: whole(handle, data[:-1]))
        with pytest.raises(OSError):  # noqa: PT011 - any
            file.append(vote())
        monkeypatch.undo()
        file.append(vote("base"))
        assert file.read() == ([vote("tie"), vote("base")], 0)

    def test_a_file_that_cannot_be_written_is_known_before_the_first_vote(self, tmp_path):
        file = Votes(tmp_path / "new" / "votes.jsonl")
        file.require_writable()
        assert not file.path.exists()
        with pytest.raises(OSError, match="directory"):
            Votes(tmp_path / "new").require_writable()

    def test_how_the_base_was_asked_is_another_comparison(self):
        plain = vote("tuned", settings={"plain_base": True})
        found = votes.tallies([plain, vote("base", settings={"plain_base": False}), vote("base")])
        assert [(t.plain_base, t.winners.total()) for t in found] == [(False, 2), (True, 1)]

    def test_the_win_rate_counts_ties_and_both_bad_as_half(self):
        cast = [vote("tuned")] * 5 + [vote("base")] * 2 + [vote("tie")] * 2 + [vote("both bad")]
        first, second = votes.tallies([vote("base", sha256="b" * 64), *cast])
        assert first.winners == {"tuned": 5, "base": 2, "tie": 2, "both bad": 1}
        assert first.win_rate is not None
        assert first.win_rate.rate == pytest.approx((5 + 1.5) / 10)
        assert first.win_rate.ci_low < first.win_rate.rate < first.win_rate.ci_high
        assert second.win_rate is None  # of a single vote there is no interval


class TestMarkdown:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("a <script>x</script>", "a &lt;script>x&lt;/script>"),
            ("![x](http://else.where/a.png)", "!&#91;x](http://else.where/a.png)"),
            ("`<b>` and <b>", "`<b>` and &lt;b>"),
            ("``a`<b>`` <b>", "``a`<b>`` &lt;b>"),
            ("```html\n<b>\n```\n<b>", "```html\n<b>\n```\n&lt;b>"),
            ("~~~\n<b>", "~~~\n<b>"),
            (r"\(a<b\) <b>", r"\(a\lt b\) &lt;b>"),
            ("$$a<b$$", r"$$a\lt b$$"),
            ("costs $5 <i> or $6", "costs $5 &lt;i> or $6"),
            ("\u202eevil\u2069", "[U+202E]evil[U+2069]"),
            ("a\r\nb\tc", "a\nb\tc"),
            ("`one\n<b>`", "`one\n&lt;b>`"),
            ("\\`<b> `", "\\`&lt;b> `"),  # an escaped backtick opens no code
            ("``` `\n<b>\n```", "``` `\n&lt;b>\n```"),  # nor does a fence with one in its first line
            ("1. a\n\n   ```\n   a<b\n   ```\n<b>", "1. a\n\n   ```\n   a<b\n   ```\n&lt;b>"),
            ("> ```\n> a<b\n> ```\n\n<b>", "> ```\n> a<b\n> ```\n\n&lt;b>"),
            ("    a<b\n", "    a<b\n"),
            ("text\n    <b>", "text\n    &lt;b>"),  # no code, for it goes on with the paragraph
            ("a\u2028```\n<b>", "a\u2028```\n&lt;b>"),
            (r"\(" + "x" * 3000 + r"\)", "&#92;(" + "x" * 3000 + r"\)"),
            ("\ud800", "[U+D800]"),
            ("> " * 12 + "x", "\\" + "> " * 12 + "x"),
        ],
    )
    def test_what_acts_is_shown_instead(self, text, shown):
        assert rendering.markdown(text) == shown

    @pytest.mark.parametrize(
        "part", [r"\[", r"\(", "$$", "`", "``` ", "> ", "- ", "*a **b ", "[", "![", "<", "\n`", "\\`"]
    )
    def test_no_text_keeps_the_server_busy(self, part):
        began = time.monotonic()
        rendering.markdown.__wrapped__(part * (16_000 // len(part)))
        assert time.monotonic() - began < 1

    def test_what_the_page_says_ends_no_html_block(self):
        shown = html_table(["a\n\n![x](y)"], [["b\r\n\r\n<i>"]]) + note("c\n\n*d*")
        assert "\n" not in shown
        assert "<i>" not in shown

    def test_a_caption_says_what_is_known(self):
        assert "tokens" not in rendering.caption("A", None)
        shown = rendering.caption("<A>", Reply("x", 10, 2.0, "length", 1.5))
        assert "&lt;A>" in shown.replace("&gt;", ">")
        assert "10 tokens" in shown
        assert "5 tokens/s" in shown
        assert "cut at its length" in shown
        assert "score +1.50" in shown


class TestCharts:
    def test_the_line_is_where_the_values_are(self):
        svg = charts.line_chart("Reward", "mean", {"a": [(1, 0.0), (3, 1.0), (2, float("nan"))]})
        (points,) = re.findall(r'<polyline[^>]* points="([^"]*)"', svg)
        (x1, y1), (x2, y2) = (tuple(map(float, point.split(","))) for point in points.split())
        assert (x1, x2) == (charts.LEFT, charts.WIDTH - 8)
        assert (y1, y2) == (charts.HEIGHT - charts.BOTTOM, charts.TOP)
        assert "nan" not in svg

    @pytest.mark.parametrize(
        ("low", "high", "ticks"),
        [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-2.4, 1.3, [-3, -2, -1, 0, 1, 2]), (5, 5, [5, 6]), (0, 0, [0, 0.2])],
    )
    def test_ticks_are_round_and_hold_the_values(self, low, high, ticks):
        assert charts._ticks(low, high) == pytest.approx(ticks)

    def test_nothing_is_drawn_of_nothing(self):
        assert charts.line_chart("Reward", "mean", {"a": []}) == ""

    def test_titles_are_text(self):
        assert "<script>" not in charts.line_chart("<script>", "<script>", {"<script>": [(1, 1)], "b": [(1, 2)]})


def gated(password=None, hosts=("testserver",), colab=False):
    app = FastAPI()

    @app.get("/")
    def index():
        html = "<html><script>let a = 1</script><script src='/x.js'></script><link rel=\"manifest\" href=m></html>"
        return gr.routes.HTMLResponse(html)

    @app.post("/gradio_api/queue/join")
    async def join():
        return {"joined": True}

    @app.get("/secret")
    def secret():
        return {}

    return TestClient(server.Gate(app, password, hosts, colab))


class TestGate:
    def test_inline_scripts_are_named_by_their_hash_and_nothing_else_may_run(self):
        answer = gated().get("/")
        policy = answer.headers["content-security-policy"]
        (scripts,) = re.findall(r"script-src ([^;]*);", policy)
        digest = base64.b64encode(hashlib.sha256(b"let a = 1").digest()).decode()
        assert scripts == f"'self' 'sha256-{digest}'"
        assert "manifest" not in answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"

    def test_only_named_routes_are_reached(self):
        client = gated()
        assert client.get("/secret").status_code == 404
        assert client.post("/gradio_api/upload").status_code == 404
        assert client.post("/gradio_api/queue/join").json() == {"joined": True}

    def test_other_names_and_other_sites_are_refused(self):
        client = gated()
        assert client.get("/", headers={"host": "evil.example"}).status_code == 403
        for origin, status in (("http://testserver", 200), ("https://evil.example", 403), ("null", 403)):
            assert client.post("/gradio_api/queue/join", headers={"origin": origin}).status_code == status
        assert gated(hosts=None).get("/", headers={"host": "any.example"}).status_code == 200

    def test_a_host_that_is_none_is_refused(self):
        async def ask():
            sent = []

            async def send(message):
                sent.append(message)

            gate = server.Gate(None, None, ("testserver",))
            await gate({"type": "http", "path": "/", "headers": [(b"host", b"[")]}, None, send)
            return sent[0]["status"]

        assert asyncio.run(ask()) == 403

    def test_an_image_cannot_hold_the_connections_of_the_page(self):
        client = gated()
        for kind, status in (("image", 403), ("iframe", 403), ("empty", 200)):
            answer = client.post("/gradio_api/queue/join", headers={"sec-fetch-dest": kind})
            assert answer.status_code == status

    def test_in_colab_the_proxy_may_frame_it(self):
        answer = gated(colab=True).get("/", headers={"host": "x.prod.colab.dev", "origin": "https://else.where"})
        assert answer.status_code == 200
        assert "googleusercontent.com" in answer.headers["content-security-policy"]

    def test_without_the_password_everything_is_401(self):
        client = gated("me:secret", None)
        for path in ("/", "/secret", "/no/such/route", "/gradio_api/queue/join"):
            for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT"):
                answer = client.request(method, path)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"].startswith("Basic")
        assert client.get("/", auth=("me", "secret")).status_code == 200
        assert client.get("/", headers={"authorization": "Basic !!!"}).status_code == 401
        assert client.get("/", auth=("me", "wrong")).status_code == 401

    def test_a_long_body_is_refused_whether_it_says_so_or_not(self):
        client = gated()
        assert client.post("/gradio_api/queue/join", content=b"x" * (server.MOST_BODY_BYTES + 1)).status_code == 413
        part = {"type": "http.request", "body": b"x" * (server.MOST_BODY_BYTES // 2), "more_body": True}

        async def receive():
            return part

        async def read():
            limited = server._limited(receive)
            return [(await limited())["type"] for _ in range(3)]

        assert asyncio.run(read()) == ["http.request", "http.request", "http.disconnect"]

    def test_no_websocket_is_opened(self):
        from starlette.websockets import WebSocketDisconnect

        with pytest.raises(WebSocketDisconnect), gated().websocket_connect("/gradio_api/queue/join"):
            pass


def test_so_many_questions_a_minute_and_address(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(server.time, "monotonic", lambda: now[0])
    rate = server.RateLimit(6)
    for _ in range(6):
        rate.take("one")
    with pytest.raises(Refused, match="in 10 s"):
        rate.take("one")
    rate.take("another")
    now[0] += 10
    rate.take("one")
    with pytest.raises(Refused):
        rate.take("one")


class TestCommand:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--demo", "--host", "0.0.0.0"], "add --auth"),
            (["--demo", "--host", "::"], "add --auth"),
            (["--demo", "--host", "my.machine"], "add --auth"),
            (["--demo", "--auth", "nobody"], "USER:PASSWORD"),
            (["--demo", "--auth", ":x"], "USER:PASSWORD"),
            (["--demo", "runs/x"], "takes no other"),
            (["no/such/run"], "neither a run directory"),
            (["--demo", "--port", "70000"], "choose one from 1"),
            (["--demo", "--questions-per-minute", "0"], "at least 1"),
        ],
    )
    def test_what_cannot_be_is_one_line(self, words, said):
        with pytest.raises(BadInput, match=said) as refused:
            main(words)
        assert "\n" not in str(refused.value)

    def test_a_port_in_use_is_told_and_the_next_is_taken_where_none_is_named(self):
        first = server.listening("127.0.0.1", None)
        try:
            taken = first.getsockname()[1]
            with pytest.raises(BadInput, match=f"--port {taken}"):
                server.listening("127.0.0.1", taken)
            second = server.listening("127.0.0.1", None)
            assert second.getsockname()[1] > taken
            second.close()
        finally:
            first.close()

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
    def test_what_only_this_machine_reaches(self, host):
        assert server.is_loopback(host)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.evil.example"])
    def test_what_others_reach(self, host):
        assert not server.is_loopback(host)


def test_a_run_directory_that_lacks_things_says_so(tmp_path):
    assert "adapter without its run" in sections.overview(tmp_path)
    assert sections.sampled_steps(tmp_path) == []
    assert sections.example_prompts(tmp_path) == []


@pytest.mark.parametrize("content", ["null\n", "[]\n", "{}\n", '{"step": 1}\n{"ste', "\ufffd", '{"step": "x"}\n'])
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "evaluation.json", "summary.json", "recipe.yaml"])
def test_a_damaged_file_of_a_run_costs_its_own_part(tmp_path, name, content):
    shutil.copytree(names.DEMO, tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    shown = sections.overview(tmp_path / "run")
    steps = sections.sampled_steps(tmp_path / "run")
    assert sections.samples(tmp_path / "run", 1)
    assert "refused" in shown or "note" in shown or name == "samples.jsonl"
    assert (not steps) == (name == "samples.jsonl")
    assert ("<polyline" in shown) == (name != "metrics.jsonl")


def test_the_sides_are_at_random_and_no_round_repeats_an_answer(tmp_path):
    wanted = []

    class Comparison:
        adapters = {"run": Adapter("run", "default", "a" * 64)}  # noqa: RUF012

        def stream(self, turns, question, adapter, settings, stop=None):
            wanted.append(settings.seed)
            yield Progress(0, {arm: Reply("words", 1, 1.0) for arm in ARMS})
            yield Progress(0, {arm: Reply("words", 7, 1.0, "length", 1.5) for arm in ARMS})

    desk = Desk(Comparison(), server.RateLimit(1000))
    with gr.Blocks() as page, gr.Tab("Blind") as inside:
        dropdown, settings = gr.Dropdown(["run"]), components.settings_panel(8, False)
        tab = BlindTab(Shared(page, inside, desk, Votes(tmp_path / "votes"), "m", {}, dropdown, settings, []))
    visitor = SimpleNamespace(session_hash="one", client=None)
    orders = set()
    for _ in range(40):
        for state in tab.ask(visitor, "x", "run", 8, 1.0, 1.0, 0, "", False, False):
            told = repr([getattr(part, "value", part) for part in state])
            assert not re.search("base|tuned|tokens|score", told, re.IGNORECASE)
        orders.add(desk.session(visitor).blind.arms["A"])
    assert orders == set(ARMS)
    assert len(set(wanted)) == 40
    told = repr(tab._voting("A")(visitor))
    assert re.search("A was the (base|tuned) model", told)
