"""What people see of rows before training."""

from __future__ import annotations

import dataclasses
import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from ragtrain import report
from ragtrain.data.sft.preview import length_report, preview, show
from ragtrain.data.sft.prompts import Prompter, PromptSettings
from ragtrain.data.sft.records import IGNORED, Sample, Shot
from ragtrain.records import Document

DOCS = (
    Document("a", "Oslo", "Oslo is the capital of Norway."),
    Document("b", "", "Été: the Glomma is a “long” river."),
)
SAMPLE = Sample("q1", "Which city is the capital?", DOCS, "Oslo", (Shot("How long?", (), "621 km"),))
PLAIN = """\
row q1: {n} tokens ({counts}), 6 trained
-- template
<|im_start|>system
-- instruction
Be brief.
-- template
<|im_end|>
<|im_start|>user
-- shots
Question: How long?
-- template
<|im_end|>
<|im_start|>assistant
-- shots
621 km
-- template
<|im_end|>
<|im_start|>user
-- passages
[1] Oslo
Oslo is the capital of Norway.

[2] Été: the Glomma is a “long” river.

-- question
Question: Which city is the capital?
-- template
<|im_end|>
<|im_start|>assistant
-- answer
[[Oslo]]
-- template
[[<|im_end|>⏎]]
"""


def parts(prompter: Prompter, sample: Sample) -> dict[str, str]:
    """Return the text of each role."""
    shown = show(prompter, sample, prompter.encode([sample])[0])
    return {role: "".join(text for text, r, _ in shown.pieces if r == role) for _, role, _ in shown.pieces}


def test_plain_form(chats: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    prompter = Prompter(chats.bpe(chat=chats.chatml), PromptSettings("Be brief."))
    encoded = prompter.encode([SAMPLE])
    (shown,) = preview(prompter, [SAMPLE], encoded)
    written = capsys.readouterr().err
    counts = written.partition("(")[2].partition(")")[0]
    numbers = [int(part.split()[-1]) for part in counts.split(", ")]
    assert sum(numbers) == len(encoded[0].ids)
    n_trained = encoded[0].trained
    expected = PLAIN.format(n=len(encoded[0].ids), counts=counts).replace("6 trained", f"{n_trained} trained")
    assert written == expected
    assert "\x1b" not in written
    # The pieces are the text, and what is trained are the labels.
    assert "".join(text for text, _, _ in shown.pieces) == prompter.layout.wholes([SAMPLE])[0]
    trained = encoded[0].ids[encoded[0].labels != IGNORED]
    assert "".join(text for text, _, learnt in shown.pieces if learnt) == prompter.tokenizer.decode(trained)


def test_colours_on_a_terminal(
    chats: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(report, "on_terminal", lambda: True)
    monkeypatch.setattr(
        report, "_console", lambda: Console(file=screen, force_terminal=True, width=200, no_color=False)
    )
    prompter = Prompter(chats.bpe(chat=chats.chatml), PromptSettings("Be brief."))
    encoded = prompter.encode([SAMPLE])
    preview(prompter, [SAMPLE], encoded)  # NO_COLOR is set by conftest
    assert not screen.getvalue()
    assert "[[Oslo]]" in capsys.readouterr().err
    monkeypatch.delenv("NO_COLOR")
    preview(prompter, [SAMPLE], encoded)
    assert "\x1b[1;4;31mOslo\x1b[0m" in screen.getvalue()  # the answer, underlined
    assert "\x1b[35mBe brief." in screen.getvalue()
    assert "[[" not in screen.getvalue()


@pytest.mark.parametrize("name", ["plain", "gemma", "llama3", "qwen3", "unigram", "bos", "template", "jinja"])
def test_parts_of_all_layouts(chats: SimpleNamespace, name: str) -> None:
    template = {
        "template": "Q: {question}\n{context}\n{instruction}\nA:{output}",
        "jinja": "{{ instruction }}{% for d in documents %}<{{ d.text }}>{% endfor %}{{ question }} {{ output }}",
    }.get(name)
    tokenizer = {"unigram": chats.metaspace, "bos": lambda: chats.bpe(adds_bos=True)}.get(
        name, lambda: chats.bpe(chat=getattr(chats, name, None))
    )()
    prompter = Prompter(tokenizer, PromptSettings("Be brief.", template=template))
    found = parts(prompter, dataclasses.replace(SAMPLE, shots=()))
    for role, text in {"instruction": "Be brief.", "question": "Which city is the capital?", "answer": "Oslo"}.items():
        assert text in found[role]
        assert len(found[role]) < len(text) + 14
    assert "capital of Norway" in found["passages"]
    assert "river" in found["passages"]
    assert "Be brief" not in found["passages"]
    (encoded,) = prompter.encode([SAMPLE])
    shown = show(prompter, SAMPLE, encoded)
    assert any(learnt for _, role, learnt in shown.pieces if role == "answer")
    assert not any(learnt for _, role, learnt in shown.pieces if role in ("instruction", "passages", "question"))


def test_finished_prompts_and_losses(chats: SimpleNamespace) -> None:
    prompter = Prompter(chats.bpe(), PromptSettings(max_length=60))
    text = f"Read this.\n{DOCS[0].text}\n{'many words ' * 20}\n\nWhich city?"
    documents = (DOCS[0], Document("b", "", ("many words " * 20).strip()))
    sample = Sample("f", "", documents, "Oslo", (), text, (0, 1))
    (encoded,) = prompter.encode([sample])
    shown = show(prompter, sample, encoded)
    assert shown.title.endswith("; 1 of 2 passages left out")
    found = parts(prompter, sample)
    assert DOCS[0].text in found["passages"]
    assert "many" not in found["passages"]
    assert "Which city?" in found["question"]
    gone = dataclasses.replace(sample, documents=())
    shown = show(prompter, gone, prompter.encode([gone])[0])
    assert shown.pieces == ()
    assert "left out" in shown.title


def test_a_tokenizer_without_offsets(chats: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    prompter = Prompter(chats.bpe(chat=chats.chatml), PromptSettings())
    (encoded,) = prompter.encode([SAMPLE])
    monkeypatch.setattr(prompter, "text_and_ends", lambda sample: ("", None))
    shown = show(prompter, SAMPLE, encoded)
    assert shown.pieces[-1] == ("Oslo<|im_end|>\n", "answer", True)


def test_control_characters_are_spelt_out(capsys: pytest.CaptureFixture[str]) -> None:
    report.marked("t", [("a\x1b[31m\r\tb\n", "question", False)])
    assert capsys.readouterr().err == "t\n-- question\na\\x1b[31m\\r\tb\n"


def test_lengths(chats: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    prompter = Prompter(chats.bpe(), PromptSettings(max_length=100))
    documents = tuple(Document(str(i), "", "Oslo is the capital of Norway. " * i) for i in range(8))
    samples = [Sample(str(i), "Which city?", documents[:i], "Oslo") for i in range(8)]
    samples.append(Sample("long", "Which city is it? " * 90, (), "Oslo"))
    encoded = prompter.encode(samples)
    rows = dict(length_report(encoded, prompter.settings))
    assert rows["rows"] == "9, 8 of them with something to learn"
    n_docs = sum(row.lost == "docs" for row in encoded)
    assert (
        rows["over 100 tokens"] == f"{n_docs + 1} ({100 * (n_docs + 1) / 9:.1f} %): {n_docs} lost passages, 1 left out"
    )
    bars = [value for name, value in rows.items() if "–" in name]
    assert sum(int(value.split()[-1]) for value in bars) == 8
    assert max(value.count("#") for value in bars) == 40
    total, trained = sum(len(row.ids) for row in encoded), sum(row.trained for row in encoded)
    assert rows["trained share"] == f"{100 * trained / total:.1f} % of {total:,} tokens"
    longest = max(len(row.ids) for row in encoded)
    assert rows["tokens a row"].endswith(f"longest {longest}")
    assert "Lengths" in capsys.readouterr().err
    lost = length_report(encoded[-1:], prompter.settings)
    assert dict(lost)["over 100 tokens"] == "1 (100.0 %): 1 left out"
    same = dict(length_report(encoded[:1] * 3, prompter.settings))
    assert same["over 100 tokens"] == "none"
