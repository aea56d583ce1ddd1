import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from data_prep.document import CorpusError, write_jsonl
from data_prep.tokens import stats
from data_prep.tokens.batches import document_text
from data_prep.tokens.tokenizer import load_tokenizer
from tests.unit.data_prep.tokens.small_corpus import DOCUMENTS, launch
from tests.unit.data_prep.tokens.test_shards import write


def test_counts_of_shards_are_those_of_their_texts(small_shards, small_tokenizer, capsys):
    assert launch(stats, "stats", small_shards, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    loaded = load_tokenizer(small_tokenizer)
    texts = [document_text(one.title, one.text) for one in DOCUMENTS]
    assert [(row["source"], row["lang"], row["documents"]) for row in facts["rows"]] == [
        ("web", "en", 1),
        ("wiki", "en", 1),
        ("wiki", "ko", 2),
    ]
    korean = [texts[0], texts[2]]
    row = facts["rows"][2]
    assert row["tokens"] == sum(len(loaded.encode(text)) + 2 for text in korean)
    assert row["characters"] == sum(map(len, korean))
    assert row["utf8_bytes"] == sum(len(text.encode()) for text in korean)
    assert row["hangul_syllables"] == sum("가" <= one <= "힣" for text in korean for one in text)
    assert row["bytes_per_token"] == round(row["utf8_bytes"] / row["tokens"], 3)
    assert row["tokens_per_hangul_syllable"] == round(row["tokens"] / row["hangul_syllables"], 3)
    assert facts["rows"][0]["tokens_per_hangul_syllable"] is None  # English: the figure would tell nothing
    assert facts["total"]["tokens_per_hangul_syllable"] is None
    assert facts["total"]["bytes_per_token"] == round(facts["total"]["utf8_bytes"] / facts["total"]["tokens"], 3)
    assert facts["total"]["tokens"] == sum(len(loaded.encode(text)) + 2 for text in texts)
    assert facts["lengths"]["longest"] == max(len(loaded.encode(text)) + 2 for text in texts)
    assert facts["lengths"]["unit"] == "tokens"


def test_counts_of_documents_agree_with_those_of_their_shards(small_shards, small_documents):
    of_documents, of_shards = stats.gather([small_documents]), stats.gather([small_shards])
    for name in ("documents", "characters", "utf8_bytes", "hangul_syllables"):
        assert [row[name] for row in of_documents["rows"]] == [row[name] for row in of_shards["rows"]]
    assert of_documents["total"]["tokens"] is None
    assert of_documents["lengths"]["unit"] == "characters"


def test_several_folders_are_summed(small_shards):
    one, two = stats.gather([small_shards]), stats.gather([small_shards, small_shards])
    for name in stats.COUNTS:
        assert two["total"][name] == 2 * one["total"][name]
        assert [row[name] for row in two["rows"]] == [2 * row[name] for row in one["rows"]]


@given(lengths=st.lists(st.integers(1, 10**6), min_size=1))
def test_every_document_is_in_one_bin_of_the_histogram(lengths):
    described = stats.describe_lengths(np.array(lengths), "tokens")
    for item in described["histogram"]:
        assert item["documents"] == sum(item["from"] <= length < item["below"] for length in lengths)
    assert sum(item["documents"] for item in described["histogram"]) == len(lengths)
    assert described["p5"] <= described["p50"] <= described["p95"] <= described["longest"] == max(lengths)
    assert described["p50"] == sorted(lengths)[(len(lengths) - 1) // 2]


def test_the_table_aligns_its_columns_and_says_what_was_read(small_shards, capsys):
    launch(stats, "stats", small_shards)
    head, names, *rows = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert head.endswith("(counts from each manifest.json, lengths from the .idx files)")
    assert names.split() == ["source", "lang", *stats.HEADINGS]
    assert [row.split()[0] for row in rows] == ["web", "wiki", "wiki", "all"]
    assert len({len(row) for row in [names, *rows]}) == 1


def test_shards_without_counts_by_source_are_counted_whole(tmp_path):
    write(tmp_path)
    facts = stats.gather([tmp_path])
    assert (facts["total"]["documents"], facts["total"]["tokens"]) == (5, 22)
    assert facts["total"]["characters"] is None
    assert any(line.split()[:4] == ["-", "-", "5", "22"] for line in stats.table(facts))


def test_the_plot_is_a_png_file(small_shards, tmp_path):
    launch(stats, "stats", small_shards, "--plot", tmp_path / "new" / "lengths.png")
    assert (tmp_path / "new" / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_the_plot_has_a_bar_for_every_count_of_the_table(small_shards, small_documents, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (drawn.append(self), path.touch()))
    for folder, names in (
        (small_shards, ["documents", "tokens", "bytes_per_token"]),
        (small_documents, ["documents", "characters"]),
    ):
        facts = stats.gather([folder])
        stats.plot(tmp_path / "counts.png", facts)
        *upper, lower = drawn.pop().axes
        assert [axes.get_title() for axes in upper] == [name.replace("_", " ") for name in names]
        for axes, name in zip(upper, names, strict=True):
            assert sorted(bar.get_width() for bar in axes.patches) == sorted(row[name] for row in facts["rows"])
        labels = [label.get_text() for label in upper[0].get_yticklabels()]
        assert sorted(labels) == sorted(f"{row['source']} {row['lang']}" for row in facts["rows"])
        counts = [item["documents"] for item in facts["lengths"]["histogram"]]
        assert [bar.get_height() for bar in lower.patches] == counts


def test_shards_without_counts_by_source_are_drawn_too(tmp_path):
    write(tmp_path)
    stats.plot(tmp_path / "counts.png", stats.gather([tmp_path]))
    assert (tmp_path / "counts.png").is_file()


def test_folders_that_cannot_be_counted_are_errors(small_shards, small_documents, tmp_path):
    with pytest.raises(CorpusError, match="holds no complete token shards and no documents"):
        launch(stats, "stats", tmp_path)
    with pytest.raises(
        CorpusError, match=r"folders of two kinds \(.*token shards, .*documents\); one kind is expected"
    ):
        launch(stats, "stats", small_shards, small_documents)
    write_jsonl(tmp_path / "documents-00000.jsonl.zst", [])
    with pytest.raises(CorpusError, match="holds 0 documents"):
        launch(stats, "stats", tmp_path)
