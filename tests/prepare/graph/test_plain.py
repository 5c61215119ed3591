from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtrain.prepare.graph import plain
from ragtrain.prepare.graph.mentions import Mention, NameTree, find_capitals, find_mentions, find_names, plain_title
from ragtrain.prepare.graph.openie import graph_of
from ragtrain.prepare.graph.phrases import relate
from ragtrain.prepare.graph.words import Usage, folded, key_of, spelled, words_of
from ragtrain.records import Passage


def triples(passages, **settings) -> set[tuple[str, str, str]]:
    found = plain.extract(passages, **{"max_mentions": 40, "min_documents": 1, **settings})
    return {triple for extraction in found for triple in extraction.triples}


def test_triples_of_a_few_passages(passages) -> None:
    found = triples(passages)
    assert {
        ("Oslo", "is the capital of", "Norway"),
        ("Oslo", "city was founded in", "1040"),
        ("1040", "by", "Harald Hardrada"),
        ("Norway", "flag was designed by", "Fredrik Meltzer"),
        ("Brother (song)", "is also called", "Brother"),
        ("Brother (song)", "was recorded by", "Pearl Jam"),
        ("Cat", "young of is called", "kitten"),
    } <= found
    # In a list all stand in the relation of the first.
    assert {("Brother (song)", "in", city) for city in ("Seattle", "Oslo", "Bergen")} <= found


def test_every_passage_stays_and_holds_its_title(passages) -> None:
    graph, sources = graph_of(plain.extract(passages, max_mentions=40, min_documents=1))
    assert [document.id for document in graph.documents] == [passage.id for passage in passages]
    held = [
        {graph.entities[i] for i in graph.document_entities[a:b]}
        for a, b in zip(graph.document_offsets[:-1], graph.document_offsets[1:], strict=True)
    ]
    assert held[4] == set()
    for passage, entities in zip(passages[:4], held[:4], strict=True):
        assert {passage.title, plain_title(passage.title)} <= entities
    assert "Oslo" in held[2]
    assert all(sources)
    for (head, _, tail), said in zip(graph.triples.tolist(), sources, strict=True):
        assert all({graph.entities[head], graph.entities[tail]} <= held[document] for document in said)


def test_the_same_passages_give_the_same_graph(passages) -> None:
    first, second = (graph_of(plain.extract(passages, max_mentions=3, min_documents=1))[0] for _ in range(2))
    assert first.fingerprint == second.fingerprint


def test_fewer_mentions_and_names_of_many_passages(passages) -> None:
    few = plain.extract(passages, max_mentions=1, min_documents=1)
    assert all(len(set(extraction.entities) - {"Brother", "Brother (song)"}) <= 2 for extraction in few)
    often = {name for e in plain.extract(passages, max_mentions=40, min_documents=2) for name in e.entities}
    assert often == {"Oslo", "Norway", "Brother (song)", "Brother", "Cat"}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("In Bergen the painter J. R. Tolkien met O'Brien.", ["Bergen", "J. R. Tolkien", "O'Brien"]),
        ("We saw St. Louis. Then Paris fell.", ["St. Louis", "Paris"]),
        ("They study at the University of the Arts in Zürich.", ["University of the Arts", "Zürich"]),
        ("It weighs 1,234.5 grams, or 12 pounds.", ["1,234.5"]),
        ("Он живёт в Москве с 1999 года.", ["Москве", "1999"]),
        ("Guides tell tales of rivers.", []),
    ],
)
def test_names_in_capitals(text: str, names: list[str]) -> None:
    words = words_of(text)
    usage = Usage(["then in paris, in Paris and Paris and Paris", text])
    assert [words.spelling(m.start, m.end) for m in find_capitals(words, usage)] == names


@pytest.mark.parametrize(
    ("names", "text", "found"),
    [
        (["C", "C++", "C#"], "C++ came after C, and C# after both", ["c++", "c", "c#"]),
        (["Person-centered therapy"], "the person - centered  Therapy of", ["person - centered Therapy"]),
        (["東京", "京都"], "私は東京に住んでいます。", ["東京"]),
        (["القاهرة"], "زرنا القاهرة أمس", ["القاهرة"]),
        (["New York", "New York City"], "new york city is not New York", ["new york city", "New York"]),
        (["Alû"], "An Alu or an Alû", ["Alû"]),
        (["The Who", "It"], "who saw it, and the who? The Who", ["The Who"]),
    ],
)
def test_names_of_a_tree(names: list[str], text: str, found: list[str]) -> None:
    words = words_of(text)
    tree = NameTree(map(key_of, names))
    spelled = [words.spelling(m.start, m.end) for m in find_names(words, tree, Usage())]
    assert [name.lower() for name in spelled] == [name.lower() for name in found]


def slow_names(words: list[str], names: set[tuple[str, ...]]) -> Iterator[tuple[int, int]]:
    place = 0
    while place < len(words):
        ends = [end for end in range(place + 1, len(words) + 1) if tuple(words[place:end]) in names]
        if ends:
            yield place, max(ends)
        place = max(ends, default=place + 1)


WORD = st.sampled_from(["Ab", "Cd", "Ef", "Gh"])


@settings(max_examples=60, deadline=None)
@given(st.lists(WORD, min_size=1, max_size=14), st.sets(st.lists(WORD, min_size=1, max_size=3).map(tuple), max_size=8))
def test_the_tree_finds_what_a_slow_search_finds(text: list[str], names: set[tuple[str, ...]]) -> None:
    words = words_of(" ".join(text))
    found = find_names(words, NameTree(key_of(" ".join(name)) for name in names), Usage())
    assert [(m.start, m.end) for m in found] == list(slow_names(text, names))


def test_of_overlapping_mentions_the_longer_one_counts() -> None:
    words = words_of("we saw the New York City Ballet there")
    found = find_mentions(words, NameTree([key_of("New York City")]), Usage())
    assert [words.spelling(m.start, m.end) for m in found] == ["New York City Ballet"]


def test_common_words_name_nothing_when_small() -> None:
    texts = [f"a brother came on day {number}" for number in range(30)]
    tree = NameTree([key_of("Brother")])
    usage = Usage(texts)
    assert not list(find_names(words_of("my brother sings"), tree, usage))
    assert list(find_names(words_of("they sang Brother again"), tree, usage))


def test_relations_have_at_most_five_words_and_the_part_before() -> None:
    text = "The old and very well known capital of Norway is a city that all people of the land call Oslo."
    words = words_of(text)
    norway, oslo = words.keys.index("norway"), words.keys.index("oslo")
    mentions = [Mention(norway, norway + 1, ("norway",), "title"), Mention(oslo, oslo + 1, ("oslo",), "title")]
    for own in (frozenset(), frozenset({("norway",)})):
        for _, phrase, _ in relate(words, mentions, own):
            assert len(phrase.split()) <= 8


def test_relations_of_scripts_without_spaces_have_none() -> None:
    found = plain.extract(
        [Passage("a", "奧地利", "奧地利的首都是維也納。"), Passage("b", "維也納", "維也納是城市。")],
        max_mentions=9,
        min_documents=1,
    )
    assert ("奧地利", "的首都是", "維也納") in found[0].triples
    assert spelled(["is", "the", "首", "都", "of"]) == "is the 首都 of"


def test_titles_without_what_tells_them_apart() -> None:
    assert plain_title("Brother (Pearl Jam song)") == "Brother"
    assert plain_title("Publix#2") == "Publix"
    assert plain_title("(What's the Story)") == "(What's the Story)"
    assert plain_title("C#") == "C#"


def test_spellings_are_compared_and_never_cut() -> None:
    assert folded("Aschenbrödel") == folded("ASCHENBRODEL") == "aschenbrodel"
    assert folded("Guinea-Bissau") == folded("Guinea Bissau")
    assert folded("हिन्दी") == "हिन्दी"
    assert folded("北京") != folded("北平")
    assert key_of("Alû") != key_of("Al")


def test_old_passages_that_mention_a_new_title(passages) -> None:
    usage = Usage(passage.text for passage in passages)
    names = ["Brother (song)", "Pearl Jam (band)", "Pearl Jam", "Oslo"]
    (found,) = plain.mentioning(passages, ["Pearl Jam (band)"], usage, names)
    assert found.passage.id == "brother"
    assert found.entities == ("Pearl Jam",)
    assert found.triples == (
        ("Brother (song)", "was recorded by", "Pearl Jam"),
        ("Pearl Jam", "in seattle", "Oslo"),
    )


def test_real_passages(real_data) -> None:
    import json

    path = real_data / "graph" / "musique_train_hipporag" / "raw" / "dataset_corpus.json"
    texts = list(json.loads(path.read_text(encoding="utf-8")).items())[:300]
    passages = [Passage(title, title, text) for title, text in texts]
    graph, _ = graph_of(plain.extract(passages, max_mentions=40, min_documents=1))
    assert len(graph.documents) == 300
    assert (graph.document_offsets[1:] > graph.document_offsets[:-1]).all()
    assert len(graph.triples) > 3000
