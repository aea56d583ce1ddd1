import argparse
import json
import multiprocessing
import os
import resource
import signal
import threading
import time

import pytest
import sentencepiece
import tiktoken
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from data_prep.document import CorpusError, Document, as_row, write_jsonl
from data_prep.run_folder import locked
from data_prep.tokens import batches
from data_prep.tokens import encode as tokens
from data_prep.tokens.shards import Shards
from data_prep.tokens.tokenizer import load_tokenizer
from data_prep.tokens.tokenizer_formats import LLAMA3_SPLIT

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
    monkeypatch.setattr(batches, "BATCH_BYTES", 10)
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


def test_documents_of_an_unfinished_command_are_an_error(documents, tokenizer, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "run.json").write_text("{}")
    for path in documents.iterdir():
        (tmp_path / "made" / path.name).write_bytes(path.read_bytes())
    for command in (["tokens", "--tokenizer", tokenizer], ["train-tokenizer", "--vocab-size", 530]):
        with pytest.raises(CorpusError, match=r"made has no manifest.json, so it is unfinished; a complete folder is"):
            launch(*command, "--documents", tmp_path / "made", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_runs_cannot_write_the_same_shards(documents, tokenizer, tmp_path):
    common = ("tokens", "--documents", documents, "--tokenizer", tokenizer, "--out", tmp_path, "--workers", 1)
    with locked(tmp_path), pytest.raises(CorpusError, match="is being written by another run; one at a time"):
        launch(*common)
    assert launch(*common) == 0


def test_a_lone_surrogate_is_an_error_naming_the_document(tokenizer, tmp_path):
    path = tmp_path / "documents-00000.jsonl"
    path.write_text(json.dumps({"id": "x7", "text": "ab\ud800"}))
    (tmp_path / "documents-00000.jsonl.zst").write_bytes(tokens_zstd(path.read_bytes()))
    with pytest.raises(CorpusError, match="document 'x7' holds a lone surrogate at character 2"):
        launch("tokens", "--documents", tmp_path, "--tokenizer", tokenizer, "--out", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


MANY = [
    Document(str(n), f"{n}번째 글은 한강과 서울을 말한다. Text {n}!\n" * (n % 7), "wiki" if n % 3 else "web", "ko")
    for n in range(1500)
]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    for part in range(3):
        write_jsonl(folder / f"documents-0000{part}.jsonl.zst", map(as_row, MANY[part::3]))
    return folder


def test_a_killed_run_keeps_its_finished_shards_and_ends_as_an_uninterrupted_one(many, tokenizer, tmp_path):
    common = ("tokens", "--documents", many, "--tokenizer", tokenizer, "--tokens-per-shard", 2500, "--workers", 1)
    launch(*common, "--out", tmp_path / "whole")
    out, progress = tmp_path / "out", tmp_path / "out.progress.json"
    process = multiprocessing.get_context("spawn").Process(target=launch, args=(*common, "--out", out))
    process.start()
    while process.is_alive() and len(list(out.glob("shard-*.bin"))) < 5:
        time.sleep(0.001)
    process.kill()
    process.join()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("shard-*.idx")}
    assert len(kept) >= 4
    assert not (out / "manifest.json").exists()
    assert progress.is_file()
    launch(*common, "--out", out)
    named = [(path.name, content) for path, content in kept.items() if path.stat().st_mtime_ns == content]
    assert len(named) >= len(kept) - 1  # one may have been renamed just before its record was written
    one, other = Shards.open(out, verify=True).manifest, Shards.open(tmp_path / "whole").manifest
    assert {**one, "commit": ""} == {**other, "commit": ""}
    assert one["ledger"]["dropped"] == {"empty": sum(not document.text for document in MANY)}
    assert not progress.exists()


def test_what_a_killed_run_left_of_other_settings_is_not_used(many, tokenizer, tmp_path):
    common = ("tokens", "--documents", many, "--tokenizer", tokenizer, "--workers", 1, "--out", tmp_path / "out")
    record = {
        "made_of": "other",
        "max_id": 1,
        "state": {},
        "shards": [{"name": "shard-00000", "documents": 1, "tokens": 1}],
    }
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "shard-00000.bin").write_bytes(bytes(4))
    (tmp_path / "out" / "shard-00000.idx").write_bytes(bytes(8))
    (tmp_path / "out.progress.json").write_text(json.dumps(record))
    launch(*common)
    assert Shards.open(tmp_path / "out", verify=True).num_documents == sum(bool(document.text) for document in MANY)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_begin_and_end_are_written_as_asked(documents, tokenizer, tmp_path, bos, eos):
    options = ["--bos" if bos else "--no-bos", "--eos" if eos else "--no-eos", "--workers", 1]
    launch("tokens", "--documents", documents, "--tokenizer", tokenizer, "--out", tmp_path, *options)
    loaded, shards = load_tokenizer(tokenizer), Shards.open(tmp_path)
    ids = shards.read(0, 0, int(shards.document_lengths[0])).tolist()
    assert ids == [loaded.bos_id] * bos + loaded.encode(ENCODED[0]) + [loaded.eos_id] * eos
    assert shards.manifest["settings"] == {"bos": bos, "eos": eos, "tokens_per_shard": tokens.TOKENS_PER_SHARD}


def test_several_folders_follow_one_another(documents, many, made, tokenizer, tmp_path):
    launch("tokens", "--documents", many, documents, "--tokenizer", tokenizer, "--out", tmp_path, "--workers", 2)
    joined, last = Shards.open(tmp_path), Shards.open(made)
    assert joined.document_lengths[-last.num_documents :].tolist() == last.document_lengths.tolist()
    assert sorted(joined.manifest["inputs"]) == ["documents 0", "documents 1", "tokenizer"]
    assert {(row["source"], row["lang"]) for row in joined.manifest["sources"]} == {
        ("web", "en"),
        ("web", "ko"),
        ("wiki", "ko"),
    }


def test_the_manifest_counts_characters_and_hangul_syllables(made):
    web, wiki = Shards.open(made).manifest["sources"]
    texts = [ENCODED[0], ENCODED[2], ENCODED[3]]
    assert wiki["characters"] == sum(map(len, texts))
    assert wiki["hangul_syllables"] == sum("가" <= character <= "힣" for text in texts for character in text)
    assert web["hangul_syllables"] == 0


@given(
    texts=st.lists(
        st.text(
            alphabet=st.sampled_from("a가각힣\ud7a4\ud7b0\uabff\ua000\u3131\uec00漢😀é") | st.characters(codec="utf-8")
        )
    )
)
def test_hangul_syllables_are_counted_in_bytes_as_in_characters(texts):
    wanted = [sum("가" <= character <= "힣" for character in text) for text in texts]
    for size in (batches.BLOCK_BYTES, 1, 4):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batches, "BLOCK_BYTES", size)
            assert batches.num_hangul_syllables([text.encode() for text in texts]).tolist() == wanted


@pytest.mark.parametrize("kind", ["tiktoken", "tokenizers", "sentencepiece"])
def test_shards_hold_the_ids_of_the_reference_library_and_decode_to_the_text(
    documents, tokenizer, llama2, tmp_path, kind
):
    paths = {
        "tiktoken": tokenizer / "tokenizer.model",
        "tokenizers": tokenizer / "tokenizer.json",
        "sentencepiece": llama2,
    }
    launch("tokens", "--documents", documents, "--tokenizer", paths[kind], "--out", tmp_path, "--workers", 1)
    shards, loaded = Shards.open(tmp_path, verify=True), load_tokenizer(paths[kind])
    reference = {"tiktoken": of_tiktoken, "tokenizers": of_tokenizers, "sentencepiece": of_sentencepiece}[kind](
        paths[kind]
    )
    assert shards.num_documents == len(ENCODED)
    for number, text in enumerate(ENCODED):
        ids = shards.read(number, 0, int(shards.document_lengths[number])).tolist()
        assert ids[1:-1] == reference(text)
        assert loaded.decode(ids) == text


def of_tiktoken(path):
    from tiktoken.load import load_tiktoken_bpe

    ranks = load_tiktoken_bpe(str(path))
    return tiktoken.Encoding("x", pat_str=LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens={}).encode_ordinary


def of_tokenizers(path):
    reference = tokenizers.Tokenizer.from_file(str(path))
    reference.encode_special_tokens = True
    return lambda text: reference.encode(text, add_special_tokens=False).ids


def of_sentencepiece(path):
    return sentencepiece.SentencePieceProcessor(model_file=str(path)).encode


def test_a_worker_that_is_killed_is_an_error_that_says_what_to_do(many, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_BYTES", 1)
    killer = threading.Thread(target=kill_a_child, daemon=True)
    killer.start()
    with pytest.raises(
        CorpusError, match=r"a worker process was ended from outside.*give fewer --workers and run again"
    ):
        launch("tokens", "--documents", many, "--tokenizer", tokenizer, "--out", tmp_path / "out", "--workers", 2)
    killer.join()
    assert not (tmp_path / "out" / "manifest.json").exists()


def kill_a_child():
    # with all workers started: CPython's pool fails by itself when one dies while it starts another
    while len(children := multiprocessing.active_children()) < 2:
        time.sleep(0.01)
    os.kill(children[0].pid, signal.SIGKILL)


def test_a_full_disk_is_an_error_and_the_finished_shards_are_kept(many, tokenizer, tmp_path):
    common = ("tokens", "--documents", many, "--tokenizer", tokenizer, "--out", tmp_path / "out", "--workers", 1)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=launch_with_little_room, args=(theirs, *common))
    process.start()
    message = ours.recv()
    process.join()
    assert "out: [Errno 27] File too large" in message
    assert "make room or mend the path, and run again: finished shards are kept" in message
    assert not (tmp_path / "out" / "manifest.json").exists()


def launch_with_little_room(pipe, *arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        launch(*arguments)
    except CorpusError as error:
        pipe.send(str(error))
    pipe.send("no error")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"id": "a", "text": "x"}\n{"id"', r"documents-00000.jsonl.zst line 2 is no JSON"),
        (b'\n{"id": "a"}\n', r"line 2: a document lacks `id` or `text`"),
        (b"[1]", r"line 1: a document lacks `id` or `text`"),
        (b'{"id": "a", "text": "\xff"}', r"line 1 is no UTF-8"),
    ],
)
def test_a_line_that_is_no_document_is_an_error_naming_it(tokenizer, tmp_path, content, message):
    (tmp_path / "documents-00000.jsonl.zst").write_bytes(tokens_zstd(content))
    with pytest.raises(CorpusError, match=message):
        launch("tokens", "--documents", tmp_path, "--tokenizer", tokenizer, "--out", tmp_path / "out", "--workers", 1)


def test_a_damaged_file_is_an_error_naming_it(many, tokenizer, tmp_path):
    data = (many / "documents-00000.jsonl.zst").read_bytes()
    for content, message in ((data[:-50], r"is cut short at \d+ bytes"), (b"text", "is no zstd file, or damaged")):
        (tmp_path / "documents-00000.jsonl.zst").write_bytes(content)
        with pytest.raises(CorpusError, match=message):
            launch(
                "tokens", "--documents", tmp_path, "--tokenizer", tokenizer, "--out", tmp_path / "out", "--workers", 1
            )


def test_lines_longer_than_a_block_and_blank_ones_are_read_whole(tmp_path):
    lines = [b"a" * 3_000_000, b"", b"b", b"c" * 1_048_576, b" ", b"d"]
    path = tmp_path / "documents-00000.jsonl.zst"
    path.write_bytes(tokens_zstd(b"\n".join(lines)))
    assert [(number, line) for number, line, _ in batches.read_lines(path)] == list(enumerate(lines, start=1))
    found = [number for batch in batches.read_batches([path], 1) for number, _ in batch.lines]
    assert found == [3, 4, 6]


def test_options_that_cannot_be_are_errors(documents, tokenizer, tmp_path):
    with pytest.raises(CorpusError, match="--tokens-per-shard 0; at least 1 is needed"):
        launch("tokens", "--documents", documents, "--tokenizer", tokenizer, "--out", tmp_path, "--tokens-per-shard", 0)


def tokens_zstd(data):
    return pytest.importorskip("zstandard").compress(data)
