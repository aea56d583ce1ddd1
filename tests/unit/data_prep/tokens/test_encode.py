import argparse
import json

import pytest

from data_prep.document import CorpusError, Document, as_row, write_jsonl
from data_prep.tokens import encode as tokens
from data_prep.tokens.shards import Shards
from data_prep.tokens.tokenizer import load_tokenizer

DOCUMENTS = [
    Document("1", "한강은 서울을 지나 서해로 흐른다.", "wiki", "ko", "한강"),
    Document("2", "A text without a title.", "web", "en"),
    Document("3", " \n ", "wiki", "ko", "빈 문서"),
    Document("4", "제목으로 시작하는 글이다. <|end_of_text|> is only text here.", "wiki", "ko", "제목"),
    Document("5", "긴 글이다. " * 20_000, "wiki", "ko", "긴 글 하나"),
]
ENCODED = [*[DOCUMENTS[number].text for number in (0, 1, 3)], f"긴 글 하나\n\n{DOCUMENTS[4].text}"]


def launch(*arguments):
    parser = argparse.ArgumentParser()
    tokens.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(list(map(str, arguments)))
    return args.run(args)


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    write_jsonl(folder / "documents-00000.jsonl.zst", map(as_row, DOCUMENTS[:2]))
    write_jsonl(folder / "documents-00001.jsonl.zst", map(as_row, DOCUMENTS[2:]))
    return folder


@pytest.fixture(scope="module")
def tokenizer(documents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "tokenizer"
    assert launch("train-tokenizer", "--documents", documents, documents, "--vocab-size", 530, "--out", folder) == 0
    return folder


@pytest.fixture(scope="module")
def made(documents, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "shards"
    assert launch("tokens", "--documents", documents, "--tokenizer", tokenizer, "--out", folder, "--workers", 1) == 0
    return folder


def test_every_document_is_bos_its_text_and_eos_and_nothing_is_truncated(made, tokenizer):
    loaded, shards = load_tokenizer(tokenizer), Shards.open(made, verify=True)
    for number in range(shards.num_documents):
        ids = shards.read(number, 0, int(shards.document_lengths[number])).tolist()
        text = ENCODED[number]
        assert (ids[0], ids[-1]) == (loaded.bos_id, loaded.eos_id)
        assert ids[1:-1] == loaded.encode(text)
        assert loaded.decode(ids) == text
    assert shards.num_documents == 4


def test_the_manifest_accounts_for_documents_tokens_and_bytes(made, tokenizer):
    manifest, loaded = Shards.open(made).manifest, load_tokenizer(tokenizer)
    assert manifest["ledger"] == {"documents_in": 5, "documents_out": 4, "dropped": {"empty": 1}}
    web, wiki = manifest["sources"]
    assert (web["source"], web["lang"], web["documents"]) == ("web", "en", 1)
    assert web["utf8_bytes"] == len(DOCUMENTS[1].text.encode())
    assert (wiki["source"], wiki["lang"], wiki["documents"]) == ("wiki", "ko", 3)
    assert web["tokens"] + wiki["tokens"] == manifest["num_tokens"]
    assert manifest["tokenizer"]["sha256"] == loaded.sha256
    assert manifest["tokenizer"]["vocab_size"] == loaded.vocab_size == 530
    assert (manifest["tokenizer"]["bos_id"], manifest["tokenizer"]["eos_id"]) == (274, 275)


def test_more_workers_write_the_same_files(made, documents, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "BATCH_CHARS", 10)
    launch("tokens", "--documents", documents, "--tokenizer", tokenizer, "--out", tmp_path, "--workers", 2)
    assert Shards.open(tmp_path).manifest["files"] == Shards.open(made).manifest["files"]


def test_a_second_run_says_that_nothing_is_to_do(made, documents, tokenizer, capsys):
    before = (made / "manifest.json").stat().st_mtime_ns
    assert launch("tokens", "--documents", documents, "--tokenizer", tokenizer, "--out", made) == 0
    assert "unchanged, nothing to do" in capsys.readouterr().out
    assert launch("train-tokenizer", "--documents", documents, documents, "--vocab-size", 530, "--out", tokenizer) == 0
    assert "unchanged, nothing to do" in capsys.readouterr().out
    assert (made / "manifest.json").stat().st_mtime_ns == before


def test_other_inputs_for_a_complete_folder_are_an_error_naming_both(made, documents, tokenizer, tmp_path):
    write_jsonl(tmp_path / "documents-00000.jsonl.zst", map(as_row, DOCUMENTS[:1]))
    with pytest.raises(CorpusError, match=r"made of something else \(documents: \w{64} there, \w{64} now\)"):
        launch("tokens", "--documents", tmp_path, "--tokenizer", tokenizer, "--out", made)
    with pytest.raises(CorpusError, match="vocab_size: 530 there, 540 now"):
        launch("train-tokenizer", "--documents", documents, documents, "--vocab-size", 540, "--out", tokenizer)


def test_a_killed_run_is_made_anew(made, documents, tokenizer, tmp_path):
    (tmp_path / "shard-00000.bin.tmp").write_bytes(b"cut")
    launch("tokens", "--documents", documents, "--tokenizer", tokenizer, "--out", tmp_path, "--workers", 1)
    assert Shards.open(tmp_path, verify=True).num_tokens == Shards.open(made).num_tokens


def test_a_wrong_tokenizer_or_folder_is_an_error(documents, tokenizer, tmp_path):
    (tmp_path / "text").write_text("no tokenizer")
    with pytest.raises(CorpusError, match="is no usable tokenizer"):
        launch("tokens", "--documents", documents, "--tokenizer", tmp_path / "text", "--out", tmp_path / "out")
    with pytest.raises(CorpusError, match="does not exist; a tokenizer file"):
        launch("tokens", "--documents", documents, "--tokenizer", tmp_path / "none", "--out", tmp_path / "out")
    with pytest.raises(CorpusError, match=r"holds no documents-\*"):
        launch("tokens", "--documents", tmp_path, "--tokenizer", tokenizer, "--out", tmp_path / "out")
    with pytest.raises(CorpusError, match="--workers 0; at least 1"):
        launch("tokens", "--documents", documents, "--tokenizer", tokenizer, "--out", tmp_path, "--workers", 0)


def test_a_lone_surrogate_is_an_error_naming_the_document(tokenizer, tmp_path):
    path = tmp_path / "documents-00000.jsonl"
    path.write_text(json.dumps({"id": "x7", "text": "ab\ud800"}))
    (tmp_path / "documents-00000.jsonl.zst").write_bytes(tokens_zstd(path.read_bytes()))
    with pytest.raises(CorpusError, match="document 'x7' holds a lone surrogate at character 2"):
        launch("tokens", "--documents", tmp_path, "--tokenizer", tokenizer, "--out", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def tokens_zstd(data):
    return pytest.importorskip("zstandard").compress(data)
