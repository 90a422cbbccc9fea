"""Judges: a server that is slow, busy or silent; answers kept; a model of our own."""

import http.server
import json
import threading

import pytest

from experiments.judge import Endpoint, JudgeError, open_judge

NONE = {"url": "", "max_tokens": 4, "timeout": 5.0, "retries": 1, "workers": 2, "cache": ""}


@pytest.fixture
def server():
    """A chat server that does what `server.turns` says, then answers with the prompt's length."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.asked.append(body["messages"][0]["content"])
            turn = found.turns.pop(0) if found.turns else 200
            if turn == "slow":  # until nobody listens any more
                found.over.wait(30)
                return
            if isinstance(turn, int) and turn != 200:
                self.send_error(turn)
                return
            text = str(len(found.asked[-1]))
            answer = {"choices": [{"message": {"content": text}}]} if turn == 200 else {}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.asked, found.turns, found.over = [], [], threading.Event()
    found.url = f"http://127.0.0.1:{found.server_port}"
    threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
    yield found
    found.over.set()
    found.shutdown()
    found.server_close()


def endpoint(server, **changes):
    return Endpoint(server.url, "any", **{"timeout": 30.0, "retries": 2, "pause": 0.01} | changes)


def test_answers_come_in_order(server):
    assert endpoint(server)(["a" * n for n in range(1, 20)]) == [str(n) for n in range(1, 20)]


@pytest.mark.parametrize("turns", [[503, 429], ["slow"], ["nonsense", "nonsense"]])
def test_what_passes_is_tried_again(server, turns):
    server.turns = list(turns)
    quick = {"timeout": 1.0} if "slow" in turns else {}
    assert endpoint(server, **quick)(["abc"]) == ["3"]
    assert len(server.asked) == len(turns) + 1


@pytest.mark.parametrize(
    ("turns", "tries", "reason"),
    [([500] * 9, 3, "HTTP 500"), ([401], 1, "HTTP 401"), (["slow"] * 9, 2, "timed out")],
)
def test_a_judge_that_does_not_answer_is_an_error(server, turns, tries, reason):
    server.turns = list(turns)
    quick = {"timeout": 0.2, "retries": 1} if "slow" in turns else {}
    with pytest.raises(JudgeError, match=rf"did not answer \({tries} tries\).*{reason}"):
        endpoint(server, **quick)(["abc"])


def test_an_unreachable_judge_is_an_error():
    with pytest.raises(JudgeError, match="did not answer"):
        Endpoint("http://127.0.0.1:9", "any", retries=0)(["abc"])


def test_answers_are_kept(server, tmp_path):
    config = {**NONE, "model": "any", "url": server.url, "cache": str(tmp_path / "judge.jsonl")}
    assert open_judge(config)(["ab", "abc", "ab"]) == ["2", "3", "2"]
    assert sorted(server.asked) == ["ab", "abc"]
    assert open_judge(config)(["abc", "abcd"]) == ["3", "4"]
    assert len(server.asked) == 3
    assert open_judge({**NONE, "model": ""}) is None
