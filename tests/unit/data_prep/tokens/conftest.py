import pytest

from data_prep.document import as_row, write_jsonl
from data_prep.tokens import encode
from data_prep.tokens.tokenizer import train_tokenizer
from tests.unit.data_prep.tokens.small_corpus import DOCUMENTS, launch, sentencepiece_bpe


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([document.text for document in DOCUMENTS] * 3, 540, folder)
    return folder


@pytest.fixture(scope="session")
def small_documents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    write_jsonl(folder / "documents-00000.jsonl.zst", map(as_row, DOCUMENTS))
    return folder


@pytest.fixture(scope="session")
def small_shards(small_tokenizer, small_documents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    options = ("--tokenizer", small_tokenizer, "--out", folder, "--workers", 1)
    launch(encode, "tokens", "--documents", small_documents, *options)
    return folder


@pytest.fixture(scope="session")
def llama2(tmp_path_factory):
    """A sentencepiece model of Llama-2's shape."""
    lines = [document.text[:2000] for document in DOCUMENTS]
    path = tmp_path_factory.mktemp("llama2") / "tokenizer.model"
    path.write_bytes(sentencepiece_bpe(lines * 3, 330))
    return path
