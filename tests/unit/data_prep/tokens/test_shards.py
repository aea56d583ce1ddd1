import contextlib
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.document import CorpusError
from data_prep.tokens.shards import Shards, ShardWriter

DOCUMENTS = [[0, 1, 2], [5, 6], [7] * 12, [1], [2, 3, 4, 5]]
TOKENIZER = {"vocab_size": 8}


def write(folder, documents=DOCUMENTS, tokens_per_shard=6, **facts):
    with ShardWriter(folder, tokens_per_shard) as writer:
        for document in documents:
            writer.add(np.array(document, dtype=np.uint32))
        return writer.finish({}, **{"tokenizer": TOKENIZER, **facts})


def resize(path, change):
    path.write_bytes(change(path.read_bytes()))


def edit_manifest(folder, **values):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_documents_come_back_whole_and_in_slices(tmp_path):
    write(tmp_path)
    shards = Shards.open(tmp_path, verify=True)
    assert shards.document_lengths.tolist() == [3, 2, 12, 1, 4]
    assert shards.document_lengths.dtype == np.int64
    assert (shards.num_documents, shards.num_tokens) == (5, 22)
    assert [shards.read(k, 0, len(document)).tolist() for k, document in enumerate(DOCUMENTS)] == DOCUMENTS
    assert shards.read(4, 1, 3).tolist() == [3, 4]
    assert shards.read(4, 2, 2).size == 0
    assert shards.read(0, 0, 3).dtype == np.uint32


def test_a_document_never_straddles_shards_and_a_long_one_has_its_own(tmp_path):
    manifest = write(tmp_path)
    assert [(shard["documents"], shard["tokens"]) for shard in manifest["shards"]] == [(2, 5), (1, 12), (2, 5)]


@given(
    documents=st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=9), min_size=1, max_size=12),
    tokens_per_shard=st.integers(1, 20),
)
def test_what_is_written_is_read_whatever_the_shard_size(tmp_path_factory, documents, tokens_per_shard):
    folder = tmp_path_factory.mktemp("shards")
    write(folder, documents, tokens_per_shard, tokenizer={})
    shards = Shards.open(folder, verify=True)
    lengths = shards.document_lengths.tolist()
    assert [shards.read(k, 0, lengths[k]).tolist() for k in range(shards.num_documents)] == documents


def test_the_files_can_be_read_with_numpy_alone_as_the_format_page_says(tmp_path):
    write(tmp_path, tokens_per_shard=100)
    tokens = np.memmap(tmp_path / "shard-00000.bin", dtype="<u4", mode="r")
    ends = np.fromfile(tmp_path / "shard-00000.idx", dtype="<u8")
    assert tokens[ends[1] : ends[2]].tolist() == DOCUMENTS[2]
    assert tokens[0 : ends[0]].tolist() == DOCUMENTS[0]


def test_the_fingerprint_is_of_the_tokens_alone(tmp_path):
    write(tmp_path / "here")
    write(tmp_path / "there", commit="another")
    write(tmp_path / "other", [*DOCUMENTS[:-1], [2, 3, 4, 6]])
    here, there, other = (Shards.open(tmp_path / name).fingerprint for name in ("here", "there", "other"))
    assert here == there
    assert here != other


def test_a_pickled_reader_opens_the_files_again_instead_of_carrying_them(tmp_path):
    write(tmp_path, [[1] * 100_000], tokens_per_shard=2**27)
    pickled = pickle.dumps(Shards.open(tmp_path))
    assert len(pickled) < 1000
    assert pickle.loads(pickled).read(0, 99_998, 100_000).tolist() == [1, 1]


def test_an_interrupted_run_leaves_nothing_and_the_next_one_starts_anew(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), ShardWriter(tmp_path) as writer:
        writer.add(np.array([1], dtype=np.uint32))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "shard-00007.bin").write_bytes(b"renamed, then killed before the manifest")
    write(tmp_path)
    assert Shards.open(tmp_path, verify=True).num_documents == 5


def test_the_same_content_again_changes_nothing_and_other_content_is_an_error(tmp_path):
    write(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write(tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    with pytest.raises(CorpusError, match="complete with other content \\(22 tokens there, 1 now\\)"):
        write(tmp_path, [[3]])
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "array", [np.array([1]), np.array([], dtype=np.uint32), np.array([[1]], dtype=np.uint32)], ids=["type", "0", "2d"]
)
def test_only_a_non_empty_vector_of_uint32_is_a_document(tmp_path, array):
    with ShardWriter(tmp_path) as writer, pytest.raises(ValueError, match="non-empty vector of uint32 is expected"):
        writer.add(array)


def test_no_documents_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match="0 documents were written"):
        write(tmp_path, [])


def test_an_id_outside_the_vocabulary_is_an_error_when_written(tmp_path):
    with pytest.raises(CorpusError, match="token id 8; vocab_size is 8"):
        write(tmp_path, [[8]])
    assert list(tmp_path.iterdir()) == []


def test_an_id_outside_the_vocabulary_is_an_error_when_opened_and_when_read(tmp_path):
    write(tmp_path)
    edit_manifest(tmp_path, tokenizer={"vocab_size": 7})
    with pytest.raises(CorpusError, match="token id 7; vocab_size is 7"):
        Shards.open(tmp_path)
    edit_manifest(tmp_path, max_token_id=6)
    with pytest.raises(CorpusError, match="token id 7; vocab_size is 7"):
        Shards.open(tmp_path).read(2, 0, 12)
    with pytest.raises(CorpusError, match=r"shard-00001.bin: token id 7; vocab_size is 7"):
        Shards.open(tmp_path, verify=True)


def test_a_folder_without_or_with_another_manifest_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match=r"has no manifest\.json"):
        Shards.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(CorpusError, match="is no JSON"):
        Shards.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "something"}')
    with pytest.raises(CorpusError, match="has format and version"):
        Shards.open(tmp_path)


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_a_cut_or_missing_file_is_an_error(tmp_path, suffix):
    write(tmp_path)
    path = tmp_path / f"shard-00001.{suffix}"
    resize(path, lambda data: data[:-4])
    with pytest.raises(CorpusError, match=rf"shard-00001.{suffix} has \d+ bytes"):
        Shards.open(tmp_path)
    path.unlink()
    with pytest.raises(CorpusError, match=f"shard-00001.{suffix} is missing"):
        Shards.open(tmp_path)


def test_a_flipped_bit_is_found_with_verify(tmp_path):
    write(tmp_path)
    resize(tmp_path / "shard-00000.bin", lambda data: bytes([data[0] ^ 1]) + data[1:])
    Shards.open(tmp_path)
    with pytest.raises(CorpusError, match=r"shard-00000.bin has SHA-256 \w+; \w+ is expected"):
        Shards.open(tmp_path, verify=True)


def test_document_ends_that_do_not_rise_are_an_error(tmp_path):
    write(tmp_path)
    resize(tmp_path / "shard-00000.idx", lambda data: data[8:] + data[:8])
    with pytest.raises(CorpusError, match="document ends do not rise to 5"):
        Shards.open(tmp_path)


@pytest.mark.parametrize("request_", [(5, 0, 1), (-1, 0, 1), (0, 0, 4), (0, -1, 1), (0, 2, 1)])
def test_reading_what_is_not_there_is_an_index_error(tmp_path, request_):
    write(tmp_path)
    with pytest.raises(IndexError, match=r"count from 0|stay within"):
        Shards.open(tmp_path).read(*request_)
