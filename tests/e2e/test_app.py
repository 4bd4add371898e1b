"""The app in a browser and from gradio_client: what people see, who may see it, and what it survives.

`GRLO_LITE_SCREENSHOTS=docs/images pytest tests/e2e/test_app.py` makes the documentation's screenshots anew.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import cycle
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import torch
from fastapi.testclient import TestClient
from gradio_client import Client
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from grlo_lite.app import page, server, sessions
from grlo_lite.app.comparison.comparison import ARMS
from grlo_lite.app.comparison.values import Adapter, Progress, Reply
from grlo_lite.app.votes import Votes
from grlo_lite.microcosm import world
from grlo_lite.models import chat_template
from grlo_lite.models.names import DEMO, POLICY

ROOT = Path(__file__).parents[2]
SCREENSHOTS = os.environ.get("GRLO_LITE_SCREENSHOTS")
SIZES = {"desktop": (1280, 900, "light"), "phone": (390, 844, "dark")}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The address of `python app.py --demo`, its votes, and how many seconds it took to be ready."""
    folder = tmp_path_factory.mktemp("demo")
    votes, log = folder / "votes.jsonl", folder / "log"
    words = ["--demo", "--port", "0", "--votes", str(votes), "--questions-per-minute", "6000"]
    began = time.monotonic()
    with log.open("w") as output:
        app = subprocess.Popen([sys.executable, ROOT / "app.py", *words], stdout=output, stderr=output)
    try:
        while not (ready := re.search(r"ready at (http://\S+)", log.read_text())):
            assert app.poll() is None, log.read_text()
            assert time.monotonic() - began < 120, log.read_text()
            time.sleep(0.05)
        yield ready[1], votes
    finally:
        app.send_signal(signal.SIGINT)
        app.wait(30)
    assert "Traceback" not in log.read_text(), log.read_text()


@contextmanager
def visit(chromium, url, size="desktop", **more):
    """A page of `url`; at the end nothing was said on the console, and nothing asked of another host."""
    width, height, scheme = SIZES[size]
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **more)
    shown, troubles, hosts = context.new_page(), [], set()
    shown.on("console", lambda said: troubles.append(said.text) if said.type == "error" else None)
    shown.on("pageerror", lambda error: troubles.append(str(error)))
    shown.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    shown.goto(url)
    shown.wait_for_selector("#compare-ask")
    yield shown
    assert troubles == []
    assert hosts <= {urlsplit(url).netloc, ""}  # without a host are blob: and data:
    context.close()


def text_of(shown, chat):
    """The newest answer in a column."""
    answers = shown.locator(f"#{chat} .message-row.bot-row")
    return answers.last.inner_text() if answers.count() else ""


def wait_until(shown, condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, shown.locator("body").inner_text()[-2000:]
        shown.wait_for_timeout(20)


def ask(shown, tab, question):
    shown.fill(f"#{tab}-question textarea", question)
    shown.click(f"#{tab}-ask")


def ended(shown, tab):
    wait_until(shown, lambda: shown.is_enabled(f"#{tab}-ask") and not shown.is_enabled(f"#{tab}-stop"))


def open_tab(shown, name):
    shown.get_by_role("tab", name=name, exact=True).click()


def screenshot(shown, name):
    if SCREENSHOTS:
        shown.wait_for_timeout(300)
        shown.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", scale="css")


@pytest.mark.parametrize("size", SIZES)
def test_ask_stop_regenerate_and_clear(demo, chromium, size):
    with visit(chromium, demo[0], size) as shown:
        assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        ask(shown, "compare", "Compare the train and the candle.")
        lengths = {arm: set() for arm in ARMS}

        def growing():
            for arm in ARMS:
                lengths[arm].add(len(text_of(shown, f"compare-{arm}")))
            return shown.is_enabled("#compare-ask") and len(lengths["base"]) > 1

        wait_until(shown, growing)
        for _ in range(9):  # a fast machine says a short answer between two looks at it
            if min(len(seen - {0}) for seen in lengths.values()) >= 2:
                break
            shown.click("#compare-clear")
            wait_until(shown, lambda: shown.locator(".message-row").count() == 0)
            lengths = {arm: set() for arm in ARMS}
            ask(shown, "compare", "Compare the train and the candle.")
            wait_until(shown, growing)
        assert min(len(seen - {0}) for seen in lengths.values()) >= 2  # both grew, under the reader's eyes
        answers = {arm: text_of(shown, f"compare-{arm}") for arm in ARMS}
        assert answers["base"] != answers["tuned"]
        for arm in ARMS:
            assert re.search(r"\d+ tokens.*tokens/s", shown.inner_text(f"#compare-caption-{arm}"), re.DOTALL)
        screenshot(shown, f"compare-{size}")

        shown.click("#compare-again")
        wait_until(shown, lambda: text_of(shown, "compare-base") not in ("", answers["base"]))  # the next seed's
        ended(shown, "compare")
        assert text_of(shown, "compare-base") != answers["base"]
        assert shown.locator("#compare-base .message-row.user-row").count() == 1

        ask(shown, "compare", "Which is better for me, the spoon or the pencil?")
        wait_until(shown, lambda: len(text_of(shown, "compare-base")) > 20)
        shown.click("#compare-stop")
        ended(shown, "compare")
        assert "stopped" in shown.inner_text("#compare-caption-base")
        for arm in ARMS:
            assert shown.locator(f"#compare-{arm} .message-row.user-row").count() == 2  # in step

        shown.click("#compare-clear")
        wait_until(shown, lambda: shown.locator(".message-row").count() == 0)

        ask(shown, "compare", "Which is better for me, the spoon or the pencil?")
        wait_until(shown, lambda: len(text_of(shown, "compare-base")) > 20)
        shown.click("#compare-clear")  # in the middle of the answer
        ended(shown, "compare")
        shown.wait_for_timeout(500)
        assert shown.locator(".message-row").count() == 0
        assert shown.is_enabled("#compare-ask")


@pytest.mark.parametrize("size", SIZES)
def test_a_blind_vote_its_reveal_and_the_results_after_a_reload(demo, chromium, size):
    url, file = demo
    before = len(Votes(file).read()[0])
    with visit(chromium, url, size) as shown:
        open_tab(shown, "Blind")
        assert not shown.is_enabled("#vote-A")
        ask(shown, "blind", "Which is better for me, the spoon or the pencil?")
        wait_until(shown, lambda: shown.locator("#blind-a .message-row.bot-row").count() == 1)
        shown.click("#blind-new")  # in the middle of the answer
        ended(shown, "blind")
        shown.wait_for_timeout(500)
        assert shown.locator("#blind-a .message-row").count() == 0
        assert not shown.is_enabled("#vote-A")

        ask(shown, "blind", "Tell me about the knife.")
        ended(shown, "blind")
        wait_until(shown, lambda: shown.is_enabled("#vote-A"))
        tab = shown.locator("#blind-a").locator("xpath=ancestor::*[@role='tabpanel'][1]")
        assert not re.search(r"base|tuned|tokens|score", tab.inner_text(), re.IGNORECASE)
        screenshot(shown, f"blind-{size}")
        shown.click("#vote-A")
        wait_until(shown, lambda: "saved" in shown.inner_text("#blind-status"))
        names = {side: shown.inner_text(f"#blind-caption-{side.lower()}") for side in "AB"}
        vote = Votes(file).read()[0][-1]
        assert len(Votes(file).read()[0]) == before + 1
        for side in "AB":
            assert vote["sides"][side] in names[side].lower()
            assert vote["answers"][vote["sides"][side]].split()[0] in text_of(shown, f"blind-{side.lower()}")
        assert vote["winner"] == vote["sides"]["A"]
        assert vote["question"] == "Tell me about the knife."
        assert not shown.is_enabled("#vote-B")  # a round is voted on once
        screenshot(shown, f"reveal-{size}")
        shown.click("#blind-new")
        wait_until(shown, lambda: shown.locator("#blind-a .message-row").count() == 0)

        shown.reload()
        open_tab(shown, "Results")
        wait_until(shown, lambda: "demo" in shown.inner_text("#results"))
        assert str(before + 1) in shown.inner_text("#results table tbody tr td:nth-child(4)")
        heads, cells = (shown.locator(f"#results table {kind}").all_inner_texts() for kind in ("th", "td"))
        assert len(heads) == len(cells)
        assert dict(zip(heads, cells, strict=True))["votes"] == str(before + 1)
        with shown.expect_download() as download:
            shown.click("#results a")
        assert Path(download.value.path()).read_bytes() == file.read_bytes()

        open_tab(shown, "Run")
        wait_until(shown, lambda: shown.locator("#run-overview svg").count() >= 4)
        for said in ("Reward", "Truncated", "microcosm-arithmetic", "planned", "measured"):
            assert said in shown.inner_text("#run-overview")
        assert shown.locator("#run-samples article").count() >= 2
        assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        screenshot(shown, f"run-{size}")


class Hostile:
    """A comparison whose answers are what an attacker would have a model say."""

    def __init__(self, *answers):
        self.adapters, self.can_score = {"run": Adapter("run", "default", "a" * 64)}, False
        self.answers, self.longest_answer = cycle(answers), 4096

    def stream(self, turns, question, adapter, settings, stop=None, arms=ARMS):
        answer = next(self.answers)
        for end in (len(answer) // 2, len(answer)):
            yield Progress(0, {arm: Reply(answer[:end], 5, 1.0) for arm in ARMS})
        yield Progress(0, {arm: Reply(answer, 9, 1.0, "end of turn") for arm in ARMS})


@contextmanager
def served(comparison, votes, password=None):
    """A page over `comparison`, served from a thread; its address."""
    desk = sessions.Desk(comparison, server.RateLimit(6000))
    blocks = page.blocks(desk, {"run": DEMO}, "microcosm", Votes(votes))
    app = server.Gate(server.mounted(blocks, page.look(), votes), password, server.LOOPBACK)
    listener = server.listening("127.0.0.1", 0)
    running = server.uvicorn_server(app)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        running.should_exit = True
        thread.join(20)


HOSTILE = [
    "<script>document.title='hacked'</script>",
    "<img src=x onerror=\"document.title='hacked'\">",
    "<svg onload=\"document.title='hacked'\"></svg>",
    "<iframe src='http://evil.example/'></iframe><object data='http://evil.example/'></object>",
    "![a](http://evil.example/a.png) <img src='http://evil.example/b.png'>",
    "[click](javascript:document.title='hacked') <a href=\"javascript:document.title='hacked'\">x</a>",
    "<style>body{display:none}</style><div style='position:fixed;inset:0;z-index:9999;background:red'>x</div>",
    "<form action='http://evil.example/'><input name=a></form>",
    "<meta http-equiv=refresh content='0;url=http://evil.example/'>",
    "```html\n<script>document.title='hacked'</script>\n```",
    "~~~js\n</code></pre><script>document.title='hacked'</script>\n~~~",
    "`<img src=x onerror=document.title='hacked'>` ``</code><script>document.title='hacked'</script>",
    "$$\\href{javascript:document.title='hacked'}{x}\\includegraphics{http://evil.example/c.png}<img src=x>$$",
    "\\(\\htmlData{a=b}{x}<script>document.title='hacked'</script>\\) \\( \\frac{1}{ \\)",
    "| a | b\n|--|\n| **x ` | [ ](  \n> - 1. ###### _\\",
    "\u202egnp.exe\u2066 \u0000\u0007\ufeff" + "مرحبا " * 3,
    "&lt;script&gt;document.title='hacked'&lt;/script&gt; &#60;img src=x onerror=document.title='hacked'&#62;",
    '"><script>document.title="hacked"</script>{{7*7}}${document.title="hacked"}',
    "\\`![x](http://evil.example/1.png) <img src=http://evil.example/2.png> `",
    "``` `\n<img src=http://evil.example/3.png>\n<div style='position:fixed;inset:0;z-index:9999'>x</div>\n```",
    " ".join(f"\\`![x](/gradio_api/queue/data?session_hash={n})" for n in range(8)) + " `",
    "`a\n- <img src=http://evil.example/4.png>`",
    "text\n        ```\n<img src=http://evil.example/5.png>\n        ```",
    "**bold**, `a < b`, \\(x^2 < y\\), and $5 or $6",
]


def test_hostile_text_is_only_text(chromium, tmp_path):
    acts = "script, iframe, object, form, input, style, meta, img, [style*='fixed'], [onerror], [onload]"
    with served(Hostile(*HOSTILE, "\n\n".join(HOSTILE)), tmp_path / "votes") as url, visit(chromium, url) as shown:
        title = shown.title()
        for number, hostile in enumerate([*HOSTILE, "\n\n".join(HOSTILE)], 1):
            ask(shown, "compare", hostile)
            wait_until(
                shown,
                lambda count=number: (
                    shown.locator("#compare-tuned .bot-row").count() == count and shown.is_enabled("#compare-again")
                ),
            )
        shown.wait_for_timeout(300)
        assert shown.title() == title
        assert shown.locator(f".answer .prose :is({acts})").evaluate_all("all => all.map(e => e.outerHTML)") == []
        assert shown.locator('.answer a[href^="javascript"]').count() == 0
        for rendered in ("strong:text('bold')", "code:text('a < b')", ".katex:has-text('x')", "pre code"):
            assert shown.locator(f"#compare-base .prose {rendered}").count() >= 1, rendered
        assert "$5 or $6" in text_of(shown, "compare-base")
        assert "[U+202E]" in shown.inner_text("#compare-base")
        open_tab(shown, "Results")  # still usable
        wait_until(shown, lambda: "no votes yet" in shown.inner_text("#results"))


def test_no_text_keeps_the_browser_busy(chromium, tmp_path):
    for number, part in enumerate(["_a ", "*a **b ", "> ", "\\(" + "{" * 500]):
        long = part * (15_900 // len(part))
        with served(Hostile(long), tmp_path / f"votes{number}") as url, visit(chromium, url) as shown:
            began = time.monotonic()
            ask(shown, "compare", "Say much.")
            wait_until(shown, lambda: "end of turn" in shown.inner_text("#compare-caption-tuned"), 30)
            assert shown.evaluate("1 + 1") == 2
            assert time.monotonic() - began < 8, part


def test_a_megabyte_is_refused_as_a_question_and_borne_as_an_answer(demo, chromium, tmp_path):
    long = "word " * 200_000
    with visit(chromium, demo[0]) as shown:
        ask(shown, "compare", long)
        wait_until(shown, lambda: "at most 16,000" in shown.inner_text("#compare-status"))
        assert shown.input_value("#compare-question textarea")[:9] == "word word"  # not lost
        ask(shown, "compare", "Tell me about the knife.")
        wait_until(shown, lambda: "end of turn" in shown.inner_text("#compare-caption-tuned"))
    with served(Hostile(long), tmp_path / "votes") as url, visit(chromium, url) as shown:
        ask(shown, "compare", "Say much.")
        wait_until(shown, lambda: "end of turn" in shown.inner_text("#compare-caption-tuned"), 60)
        open_tab(shown, "Blind")
        assert shown.is_enabled("#blind-ask")


def test_it_ends_at_once_with_pages_that_wait(tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, ROOT / "app.py", "--demo", "--port", "0", "--votes", tmp_path / "votes.jsonl"]
    with log.open("w") as output:
        app = subprocess.Popen(command, stdout=output, stderr=output)
    deadline = time.monotonic() + 120
    while not (ready := re.search(r"ready at (http://\S+)", log.read_text())):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    clients = [Client(ready[1], verbose=False) for _ in range(3)]  # each takes a while, in which an answer would end
    question = "Which is better for me, the spoon or the pencil?"  # the base talks on as long as it may
    jobs = [client.submit(question, max_tokens=1024, api_name="/compare") for client in clients]
    while not jobs[0].outputs():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    assert not any(job.done() for job in jobs)
    app.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert app.wait(30) in (0, 130), log.read_text()
    assert time.monotonic() - began < 8
    assert len(log.read_text().splitlines()) == 2, log.read_text()
    ended = [job.outputs()[-1] for job in jobs if job.done() and job.status().success]
    assert {state["base"]["ended"] for state in ended} <= {"stopped"}  # none went on to its end
    begun = [state for job in jobs for state in job.outputs()[-1:] if "base" in state]
    assert {state["base"]["ended"] for state in begun} <= {None, "stopped"}  # nor one whose page was cut off


def routes_of(app):
    """The paths of an application and of all that is mounted or included in it."""
    for route in app.routes:
        yield re.sub(r"\{[^}]*\}", "x", getattr(route, "path", None) or "/")
        inner = getattr(route, "original_router", None) or getattr(route, "app", None)
        if hasattr(inner, "routes"):
            yield from routes_of(inner)


def test_with_a_password_no_route_answers_without_it(chromium, tmp_path):
    comparison = Hostile("Hello.")
    blocks = page.blocks(sessions.Desk(comparison, server.RateLimit(60)), {"run": DEMO}, "m", Votes(tmp_path / "v"))
    mounted = server.mounted(blocks, page.look(), tmp_path / "v")
    paths = set(routes_of(mounted))
    assert {"/config", "/votes.jsonl", "/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/run/x"} <= paths
    gated = TestClient(server.Gate(mounted, "me:secret", None))
    for path in [*paths, "/file=/etc/passwd", "/gradio_api/file=/etc/passwd", "/nothing"]:
        for method in ("GET", "POST"):
            assert gated.request(method, path).status_code == 401, path
    with served(comparison, tmp_path / "votes", "me:secret") as url:
        with httpx.Client(base_url=url) as client:
            assert client.get("/").status_code == 401
            assert client.get("/", auth=("me", "wrong")).status_code == 401
            assert client.get("/gradio_api/file=/etc/passwd", auth=("me", "secret")).status_code == 404
        with visit(chromium, url, http_credentials={"username": "me", "password": "secret"}) as shown:
            ask(shown, "compare", "Hi")
            wait_until(shown, lambda: "end of turn" in shown.inner_text("#compare-caption-tuned"))
        client = Client(url, httpx_kwargs={"auth": ("me", "secret")}, verbose=False)
        assert client.predict("Hi", api_name="/compare")["tuned"]["text"] == "Hello."


class Bare:
    """One arm by Transformers and PEFT alone: the dequantized base, or that with the adapter merged into it."""

    def __init__(self, adapter=None):
        nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
        base = AutoModelForCausalLM.from_pretrained(POLICY, quantization_config=nf4, dtype=torch.float32)
        base = base.dequantize().float()
        self.model = (PeftModel.from_pretrained(base, adapter).merge_and_unload() if adapter else base).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(POLICY)
        self.stops = chat_template.stop_token_ids(self.tokenizer)
        self.answer = cache(self._answer)

    def _answer(self, text, max_tokens):
        ids = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            out = self.model.generate(
                **ids, do_sample=False, max_new_tokens=max_tokens, eos_token_id=self.stops, pad_token_id=0
            )
        return self.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)

    def templated(self, messages):
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def predict(client, **request):
    """The endpoint's answer; asked again where gradio_client cancels it: its reader of the request before may end just
    when this one is sent, and takes it along.
    """
    for _ in range(9):
        try:
            return client.predict(**request, api_name="/compare")
        except CancelledError:
            continue
    return client.predict(**request, api_name="/compare")


def test_of_a_hundred_requests_from_eight_clients_each_answer_is_its_own_arms(demo):
    questions = [q.text for domain in world.VERIFIABLE for q in world.exam(domain, 5, seed=3)]
    questions += world.chat_prompts(held_out=True)[: 25 - len(questions)]
    earlier = {"question": "Why do people like the oven?", "base": "Yes.", "tuned": "It is large, and people bake."}
    wanted = [
        {
            "question": questions[number % 25],
            "turns": [earlier] if number % 4 == 1 else [],
            "max_tokens": 10 + 5 * (number % 3),
            "temperature": 0.0,
            "plain_base": number % 5 == 0,
        }
        for number in range(100)
    ]
    clients = [Client(demo[0], verbose=False) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        given = list(threads.map(lambda pair: predict(clients[pair[0] % 8], **pair[1]), enumerate(wanted)))
    bare = {"base": Bare(), "tuned": Bare(DEMO / "adapter")}
    differing = Counter()
    for request, replies in zip(wanted, given, strict=True):
        for arm in ARMS:
            messages = [{"role": "user", "content": request["question"]}]
            for turn in reversed(request["turns"]):
                said = {"role": "assistant", "content": turn[arm]}
                messages = [{"role": "user", "content": turn["question"]}, said, *messages]
            plain = arm == "base" and request["plain_base"]
            text = "\n\n".join(m["content"] for m in messages) + "\n" if plain else bare[arm].templated(messages)
            differing[arm] += replies[arm]["text"] != bare[arm].answer(text, request["max_tokens"])
    assert differing == {"base": 0, "tuned": 0}
    assert sum(r["base"]["text"] != r["tuned"]["text"] for r in given) > 80


def test_the_endpoint_streams_and_says_what_it_refuses(demo):
    client = Client(demo[0], verbose=False)
    job = client.submit("Which is better for me, the spoon or the pencil?", max_tokens=200, api_name="/compare")
    states = list(job)
    assert len(states) >= 3
    assert len(states[0]["base"]["text"]) < len(states[-1]["base"]["text"])
    assert states[-1]["base"]["ended"] in ("length", "end of turn")
    for wrong, said in (
        ({"question": " "}, "empty"),
        ({"question": "x" * 20_000}, "shorten it"),
        ({"question": "x", "temperature": 9}, "temperature"),
        ({"question": "x", "max_tokens": 10**9}, "max_tokens|ask for a shorter"),
        ({"question": "x", "adapter": "none"}, "no adapter"),
        ({"question": "x", "turns": [{"question": "y"}]}, "question, base and tuned"),
    ):
        with pytest.raises(Exception, match=said):
            predict(client, **wrong)


def test_who_waits_sees_for_how_many_and_a_closed_tab_frees_the_model(demo, chromium):
    question = "Which is better for me, the spoon or the pencil?"  # the base talks on as long as it may
    clients = [Client(demo[0], verbose=False) for _ in range(3)]
    with visit(chromium, demo[0]) as shown, visit(chromium, demo[0]) as waiting:
        jobs = [client.submit(question, max_tokens=1024, api_name="/compare") for client in clients]
        wait_until(shown, lambda: jobs[0].outputs())
        ask(waiting, "compare", "Tell me about the knife.")
        wait_until(waiting, lambda: re.fullmatch("[1-3] before you", waiting.inner_text("#compare-status")))
        waiting.click("#compare-stop")  # without waiting for the others
        ended(waiting, "compare")
        assert not jobs[-1].done()
        for job in jobs:
            job.result(timeout=60)
        ask(shown, "compare", question)
        wait_until(shown, lambda: text_of(shown, "compare-base"))
    began = time.monotonic()
    first = next(iter(Client(demo[0], verbose=False).submit("Hi", max_tokens=4, api_name="/compare")))
    assert first["ahead"] == 0
    assert time.monotonic() - began < 5


VOTER = """
    import sys
    from pathlib import Path
    from types import SimpleNamespace
    import gradio as gr
    from grlo_lite.app import components, server, sessions
    from grlo_lite.app.comparison.values import Adapter, Progress, Reply
    from grlo_lite.app.tabs.blind import BlindTab
    from grlo_lite.app.votes import Votes

    class Comparison:
        adapters = {"run": Adapter("run", "default", "a" * 64)}
        def stream(self, turns, question, adapter, settings, stop=None):
            yield Progress(0, {arm: Reply(arm, 1, 1.0, "length") for arm in ("base", "tuned")})

    visitor = SimpleNamespace(session_hash="one", client=None)
    with gr.Blocks() as page, gr.Tab("Blind") as inside:
        adapter, settings = gr.Dropdown(["run"]), components.settings_panel(8, False)
        desk, votes = sessions.Desk(Comparison(), server.RateLimit(10**6)), Votes(Path(sys.argv[1]))
        tab = BlindTab(components.Shared(page, inside, desk, votes, "microcosm", {}, adapter, settings, []))
    vote = tab._voting("A")
    for number in range(int(sys.argv[2]), 200):
        for _ in tab.ask(visitor, f"question {number}", "run", 8, 1.0, 1.0, 0, "", False, False):
            pass
        assert "saved" in vote(visitor)[4]
        print(number, flush=True)
"""


@pytest.mark.slow
def test_no_vote_that_was_confirmed_is_lost_to_a_kill(tmp_path):
    file, confirmed, chance, kills = tmp_path / "votes.jsonl", [], random.Random(0), 0
    while len(confirmed) < 200:
        start = confirmed[-1] + 1 if confirmed else 0
        command = [sys.executable, "-c", textwrap.dedent(VOTER), str(file), str(start)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        until = start + chance.randint(20, 120)
        for line in process.stdout:
            confirmed.append(int(line))
            if confirmed[-1] == until:
                time.sleep(chance.uniform(0, 0.003))
                process.kill()
        kills += process.wait() == -signal.SIGKILL
    kept, broken = Votes(file).read()
    found = Counter(vote["question"] for vote in kept)
    assert kills >= 1
    assert broken <= kills
    assert set(found) == {f"question {number}" for number in range(200)}
    assert sum(found.values()) <= 200 + kills  # what was written but not yet confirmed is voted on again
    assert json.loads(file.read_text().splitlines()[0])["winner"] in ARMS


def test_a_vote_that_cannot_be_saved_does_not_count(chromium, tmp_path):
    (tmp_path / "votes.jsonl").mkdir()
    with served(Hostile("Hello."), tmp_path / "votes.jsonl") as url, visit(chromium, url) as shown:
        open_tab(shown, "Blind")
        ask(shown, "blind", "Hi")
        wait_until(shown, lambda: shown.is_enabled("#vote-A"))
        shown.click("#vote-A")
        wait_until(shown, lambda: "does not count" in shown.inner_text("#blind-status"))
        assert shown.is_enabled("#vote-A")
