import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from grlo_lite.errors import BadInput
from grlo_lite.evaluation import pairwise_judge


def test_the_higher_reward_wins_and_equal_ones_tie():
    scores = {"bad": -1.0, "good": 2.0}

    def score(conversations):
        assert all([m["role"] for m in c] == ["user", "assistant"] for c in conversations)
        return [scores[c[1]["content"]] for c in conversations]

    found = pairwise_judge.by_reward(score, ["p", "q", "r"], ["bad", "good", "good"], ["good", "bad", "good"])
    assert [p.win for p in found] == [1.0, 0.0, 0.5]
    assert found[0].why == "reward -1.000 against 2.000"


def test_the_judges_part_of_the_result():
    found = [pairwise_judge.Preference(w, "") for w in (1.0, 1.0, 0.0, 0.5)] + [
        pairwise_judge.Preference(0.5, "base first: unreadable")
    ]
    result = pairwise_judge.comparison(found, ["aa"] * 5, ["aaaa", "aa", "aaa", "aaaa", "aa"])
    assert result["win_rate"]["rate"] == pytest.approx(0.6)
    assert result["mean_characters"] == {"base": 2.0, "tuned": 3.0}
    assert (result["ties"], result["unreadable"]) == (0.4, 1)
    assert 0 < result["length_controlled_win_rate"]["rate"] < 1


@pytest.fixture
def endpoint():
    """An OpenAI-compatible judge: prefers the answer GOOD, is biased to A between equals, and may be unreadable."""
    seen = []

    class Reply(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers.get("Authorization"), body["model"]))
            request = body["messages"][0]["content"]
            first, second = request.split("[Answer A]")[1].split("[Answer B]")
            letter = "A" if "GOOD" in first else "B" if "GOOD" in second else "A"
            letter = "Both are fine, I would say." if "ODD" in request else letter
            if body["model"] == "absent":
                self.send_error(404, "no such model")
                return
            content = (
                {"nothing": 1} if body["model"] == "other" else {"choices": [{"message": {"content": f" {letter}. "}}]}
            )
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Reply)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", seen
    server.shutdown()


def test_an_endpoint_is_asked_in_both_orders(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    url, seen = endpoint
    base, tuned = ["x", "GOOD", "x", "ODD"], ["GOOD", "x", "y", "ODD"]
    found = pairwise_judge.by_endpoint(url, "m", ["p"] * 4, base, tuned)
    assert [p.win for p in found] == [1.0, 0.0, 0.5, 0.5]  # the bias towards A cancels
    assert "unreadable" in found[3].why
    assert seen == [("/v1/chat/completions", "Bearer k", "m")] * 8


@pytest.mark.parametrize(("model", "told"), [("absent", "404"), ("other", "did not reply as an OpenAI-compatible")])
def test_an_endpoint_that_refuses_is_bad_input(endpoint, model, told):
    with pytest.raises(BadInput, match=told):
        pairwise_judge.by_endpoint(endpoint[0], model, ["p"], ["a"], ["b"])


def test_an_endpoint_that_is_not_there_is_bad_input():
    with pytest.raises(BadInput, match="OPENAI_API_KEY"):
        pairwise_judge.by_endpoint("http://127.0.0.1:9/v1", "m", ["p"], ["a"], ["b"])
