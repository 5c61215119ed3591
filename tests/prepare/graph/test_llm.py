from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ragtrain.config.commands import PrepareConfig
from ragtrain.config.commands.graph import GraphConfig
from ragtrain.data import demo
from ragtrain.errors import ConfigError, DataError, Interrupted
from ragtrain.index.graph.read import read_graph
from ragtrain.models import generate as generation
from ragtrain.prepare import chat, run
from ragtrain.prepare.graph import llm, llm_writers
from ragtrain.records import Passage

KEY = "sk-very-secret"


def good(title: str) -> str:
    return "Here it is:\n```json\n" + json.dumps({
        "entities": [title, "Norway", 7, ""], "triples": [[title, "is in", "Norway"], ["x", "y"], [title, "has", 7]],
    }) + "\n```"  # fmt: skip


class FakeServer:
    """Answers by title; ``script`` maps a title to what is sent first: a status, a text, or a status with headers."""

    def __init__(self) -> None:
        self.script: dict[str, list[object]] = {}
        self.asked: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, object]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][0]["content"]
                title = prompt.rpartition("Title: ")[2].partition("\n")[0]
                server.asked[title] += 1
                server.headers.append(dict(self.headers))
                server.bodies.append(body)
                planned = server.script.get(title)
                step = planned.pop(0) if planned else good(title)
                status, text = (step, f"no {KEY}") if isinstance(step, int) else (200, step)
                sent = text if status != 200 else json.dumps({"choices": [{"message": {"content": text}}]})
                self.send_response(status)
                if status == 307:
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                if status == 429:
                    self.send_header("Retry-After", "0.01")
                self.end_headers()
                self.wfile.write(str(sent).encode())

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(chat, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    made = FakeServer()
    yield made
    made.http.shutdown()
    made.http.server_close()


def config(server: FakeServer, corpus: Path, out: Path, **graph: object) -> PrepareConfig:
    settings = {"graph": True, "llm": server.address, "llm_model": "tiny", "llm_batch_size": 2, **graph}
    return PrepareConfig(passages=corpus, output_dir=out, graph_build=GraphConfig(**settings))


def test_a_graph_of_a_server(server: FakeServer, corpus: Path, tmp_path: Path, caplog, capsys) -> None:
    server.script = {"Oslo": [429, 500], "Norway": ["no json", good("Norway")], "Cat": ["[1]", '{"entities": []}']}
    with caplog.at_level(logging.DEBUG):
        made = run(config(server, corpus, tmp_path / "graph"))
    graph = read_graph(tmp_path / "graph")
    assert [d.id for d in graph.documents] == ["oslo", "norway", "brother", "cat", "lower"]
    assert made.about["answers"] == {"asked": 5, "known": 0, "asked again": 2, "bad": 1}
    assert made.about["malformed"] == 4 * 2
    assert server.asked == {"Oslo": 3, "Norway": 2, "Cat": 2, "Brother (song)": 1, "(none)": 1}
    names = {(graph.entities[h], graph.relations[r], graph.entities[t]) for h, r, t in graph.triples.tolist()}
    assert ("Oslo", "is in", "Norway") in names
    assert ("Oslo", "has", "7") in names
    body = server.bodies[0]
    assert (body["model"], body["temperature"]) == ("tiny", 0)
    # The key goes into one header and nowhere else, not even where the server repeats it.
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.headers)
    written = "".join(path.read_text(errors="replace") for path in (tmp_path / "graph").rglob("*") if path.is_file())
    assert KEY not in written + caplog.text + capsys.readouterr().err


def test_nothing_is_asked_twice(server: FakeServer, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "graph"
    run(config(server, corpus, out))
    first = sum(server.asked.values())
    with (out / llm.ANSWERS_FILE).open("a") as file:
        file.write('{"key": "cut in the mid')
    again = run(config(server, corpus, out, max_synonyms=3).model_copy(update={"overwrite": True}))
    assert sum(server.asked.values()) == first
    assert again.about["answers"] == {"asked": 0, "known": 5, "asked again": 0, "bad": 0}
    run(config(server, corpus, out, llm_model="other").model_copy(update={"overwrite": True}))
    assert sum(server.asked.values()) == 2 * first


def test_a_stop_keeps_the_answers(server: FakeServer, corpus: Path, tmp_path: Path, monkeypatch) -> None:
    original, calls = chat.Server.ask, []

    def stop(self, prompt: str) -> str:
        calls.append(prompt)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, prompt)

    monkeypatch.setattr(chat.Server, "ask", stop)
    with pytest.raises(Interrupted, match="2 of 5 answers are kept"):
        run(config(server, corpus, tmp_path / "graph"))
    assert not (tmp_path / "graph" / "graph.json").exists()
    monkeypatch.setattr(chat.Server, "ask", original)
    made = run(config(server, corpus, tmp_path / "graph"))
    assert made.about["answers"]["known"] == 2
    assert made.documents == 5


@pytest.mark.parametrize(
    ("status", "message", "hint"),
    [(401, "refuses: 401", "OPENAI_API_KEY"), (404, "refuses: 404", "--llm-model"), (307, "refuses: 307", "points to")],
)
def test_a_server_that_refuses(
    server: FakeServer, corpus: Path, tmp_path: Path, status: int, message: str, hint: str
) -> None:
    server.script = {"Oslo": [status] * 9}
    with pytest.raises(ConfigError, match=message) as caught:
        run(config(server, corpus, tmp_path / "graph"))
    assert hint in str(caught.value.hint)
    assert KEY not in str(caught.value)


def test_a_server_out_of_reach(server: FakeServer, corpus: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(chat, "TRIES", 2)
    server.script = {"Oslo": [503] * 9}
    with pytest.raises(DataError, match="did not answer 2 requests; the last time: 503"):
        run(config(server, corpus, tmp_path / "graph"))
    with pytest.raises(ConfigError, match="llm_model"):
        run(config(server, corpus, tmp_path / "graph", llm_model=None))


@pytest.mark.parametrize("text", ["", "{", "{'entities': [], 'triples': []}", '{"entities": 1, "triples": []}', "[]", "{}",
                                  "__import__('os')", '{"a":' * 100000])  # fmt: skip
def test_what_is_no_answer(text: str) -> None:
    with pytest.raises(llm.BadAnswerError):
        llm.parse(text)


def test_what_is_one() -> None:
    answer = llm.parse(good("Oslo"))
    assert answer.entities == ("Oslo", "Norway", "7")
    assert answer.triples == (("Oslo", "is in", "Norway"), ("Oslo", "has", "7"))
    assert answer.malformed == 2
    assert llm.parse('{"entities": ["' + "x" * 999 + '"], "triples": [[1, true, null]]}') == llm.Answer((), (), 2)


def test_long_texts_are_asked_about_in_parts(server: FakeServer, tmp_path: Path) -> None:
    settings = GraphConfig(graph=True, llm=server.address, llm_model="tiny")
    passage = Passage("p", "Long", "word " * 900)
    (found,), about = llm.extract([passage], settings, tmp_path)
    assert about["answers"]["asked"] == 2  # of three parts two are the same
    assert found.passage == passage
    assert found.triples == (("Long", "is in", "Norway"), ("Long", "has", "7"))


def test_a_local_model(corpus: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(llm_writers, "ANSWER_TOKENS", 4)
    settings = GraphConfig(graph=True, llm=str(demo.CAUSAL), llm_batch_size=3)
    local = PrepareConfig(passages=corpus, output_dir=tmp_path / "graph", device="cpu", graph_build=settings)
    with pytest.raises(DataError, match="gave no triple in 5 answers"):
        run(local)
    prompts: list[int] = []

    def answered(model, tokenizer, ids, **options):
        assert options == {"max_new_tokens": 4, "batch_size": 3}
        prompts.append(len(ids))
        assert all("knowledge graph" in tokenizer.decode(each) for each in ids)
        return [generation.Generated(good("Oslo"), 4, True, 0.0) for _ in ids]

    monkeypatch.setattr(generation, "generate", answered)
    made = run(local)
    assert prompts == [3, 2]
    assert (made.how, made.documents, made.about["answers"]["bad"]) == ("llm", 5, 0)
