import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.document import CorpusError
from data_prep.lineage import write_json
from data_prep.tokens import inspection
from data_prep.tokens.shards import Shards
from data_prep.tokens.tokenizer import load_tokenizer, train_tokenizer
from tests.unit.data_prep.tokens.small_corpus import DOCUMENTS, launch


@given(text=st.text(alphabet="강한 서울 뷁ab漢😀\n", max_size=30))
def test_the_pieces_without_their_marks_are_the_text(small_tokenizer, text):
    for name in ("tokenizer.model", "tokenizer.json"):
        loaded = load_tokenizer(small_tokenizer / name)
        ids = [loaded.bos_id, *loaded.encode(text), loaded.eos_id]
        shown = inspection.show(loaded, ids, with_ids=False, coloured=False)
        assert shown.startswith("[[<|begin_of_text|>]]")
        assert shown.endswith("|[[<|end_of_text|>]]")
        pieces = shown.replace("\\n\n", "\n").split("|")[2:-2] if text else []
        kept = re.sub("((?:<0x[0-9A-F]{2}>)+)(?:=.)?", r"\1", "".join(pieces).replace("_of_text", ""))
        cut = re.compile("(?:<0x[0-9A-F]{2}>)+")
        whole = cut.sub(lambda m: bytes(int(b, 16) for b in re.findall("0x(..)", m[0])).decode(), kept)
        assert whole.removeprefix(">]]").removesuffix("[[<") == text


def test_a_document_is_shown_with_its_place_ids_and_range(small_shards, capsys):
    assert launch(inspection, "inspect", small_shards, "--doc", 2, "--tokens", "0:3", "--ids") == 0
    captured = capsys.readouterr()
    opened = Shards.open(small_shards)
    ids = opened.read(2, 0, 3).tolist()
    assert re.findall(r"\((\d+)\)", captured.out) == list(map(str, ids))
    assert captured.out.startswith("[[<|begin_of_text|>(")
    offset = int(opened.document_lengths[:2].sum())
    length = int(opened.document_lengths[2])
    assert captured.err == (
        f"document 2 of 4: {length} tokens in shard-00000.bin, there document 2, from token {offset} "
        f"(byte {4 * offset}); shown are 0:3\n"
    )


def test_the_place_in_a_later_shard_is_where_numpy_finds_the_tokens(small_tokenizer, small_documents, tmp_path):
    from data_prep.tokens import encode

    options = ("--tokenizer", small_tokenizer, "--out", tmp_path, "--workers", 1, "--tokens-per-shard", 40)
    launch(encode, "tokens", "--documents", small_documents, *options)
    opened = Shards.open(tmp_path)
    for number in range(opened.num_documents):
        length = int(opened.document_lengths[number])
        told = inspection._place(opened, number, 0, length)
        name, place, token = re.search(r"in (\S+), there document (\d+), from token (\d+)", told).groups()
        from_file = opened._tokens[int(name[6:11])][int(token) : int(token) + length]
        assert from_file.tolist() == opened.read(number, 0, length).tolist()
        ends = opened._ends[int(name[6:11])]
        assert int(ends[int(place)]) == int(token) + length


def test_colours_mark_pieces_and_end_before_each_line_break(small_tokenizer):
    loaded = load_tokenizer(small_tokenizer)
    shown = inspection.show(loaded, [loaded.bos_id, *loaded.encode("강 a\nb")], with_ids=False, coloured=True)
    assert shown.startswith(f"{inspection.SPECIAL_COLOUR}<|begin_of_text|>{inspection.RESET}")
    assert "|" not in re.sub(r"<\|.*?\|>", "", shown)
    for line in shown.split("\n"):
        assert line.count("\x1b[") % 2 == 0
        assert line.endswith(inspection.RESET)


def test_bytes_of_a_character_stand_with_the_character(llama2):
    loaded = load_tokenizer(llama2)
    shown = inspection.show(loaded, loaded.encode("a뷁"), with_ids=False, coloured=False)
    assert shown.endswith("|<0xEB>|<0xB7>|<0x81>=뷁")


def test_documents_are_shown_with_their_file_and_line(small_documents, capsys):
    assert launch(inspection, "inspect", small_documents, "--doc", 2) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        f"{small_documents / 'documents-00000.jsonl.zst'}, line 3\nid: 3\nsource: wiki\nlang: ko\ntitle: 서울\n\n"
    )
    assert DOCUMENTS[2].text in out
    with pytest.raises(CorpusError, match=r"--doc 4; .* has 4 documents; count from 0"):
        launch(inspection, "inspect", small_documents, "--doc", 4)


@pytest.mark.parametrize("asked", ["5:2", "x", "0:100000", "3"])
def test_a_range_that_is_not_there_is_an_error(small_shards, asked):
    with pytest.raises(CorpusError, match=rf"--tokens {asked}; the document has \d+ tokens; give FROM:TO within 0:\d+"):
        launch(inspection, "inspect", small_shards, "--doc", 0, "--tokens", asked)


def test_a_document_or_folder_that_is_not_there_is_an_error(small_shards, tmp_path):
    for number in (4, -1):
        with pytest.raises(CorpusError, match=f"--doc {number}; .* has 4 documents; count from 0"):
            launch(inspection, "inspect", small_shards, "--doc", number)
    with pytest.raises(CorpusError, match="holds no complete token shards and no documents"):
        launch(inspection, "inspect", tmp_path, "--doc", 0)


def test_another_tokenizer_is_an_error_and_an_extension_of_the_same_is_not(small_shards, tmp_path):
    train_tokenizer(["다른 글 other text"] * 3, 520, tmp_path)
    with pytest.raises(CorpusError, match=r"has SHA-256 \w{12}; .* was made with \w{12}; give that tokenizer"):
        launch(inspection, "inspect", small_shards, "--doc", 0, "--tokenizer", tmp_path)
    opened = Shards.open(small_shards)
    write_json(tmp_path / "extension.json", {"base": {"sha256": opened.manifest["tokenizer"]["sha256"]}})
    assert inspection.tokenizer_of(opened, tmp_path).path.parent == tmp_path


def test_a_tokenizer_that_has_gone_is_an_error(small_shards, tmp_path):
    opened = Shards.open(small_shards)
    opened.manifest["inputs"]["tokenizer"]["path"] = str(tmp_path / "gone.model")
    with pytest.raises(CorpusError, match=r"its tokenizer .*gone.model is not there; .*; give --tokenizer"):
        inspection.tokenizer_of(opened, None)
