"""Files from outside: models, shards and texts made to lead out of their folder, to run code or to fill the memory."""

import gzip
import json
import pickle
import re
import resource
import struct

import pytest

from configs.loader import ConfigError
from data_prep.document import CorpusError, read_jsonl
from data_prep.hf_directory import INDEX, ModelDirectory
from data_prep.readers import lines
from data_prep.readers.hub import HubSource
from data_prep.source import Part
from data_prep.tokens.shards import Shards
from data_prep.wiki.pages import BrokenPageError, parse_page
from data_prep.wiki.siteinfo import parse_site
from tests.support import random_shards

DEEP = "[" * 100_000
"""JSON that no parser follows to its end."""


@pytest.fixture
def model(tmp_path):
    """A directory with a configuration; the test adds the rest."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def write_safetensors(path, header, data=b"\0" * 8):
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth"])
def test_pickled_weights_are_refused_unread(model, tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "trace"), "w")

    (model / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ConfigError, match=rf"holds {re.escape(name)}, a pickle, which can run code .* safetensors are"):
        ModelDirectory.open(model)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_does_not_lead_out_of_its_folder(model, tmp_path, name):
    write_safetensors(tmp_path / "secret.safetensors", {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})
    (model / INDEX).write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ConfigError, match=re.escape(f"names {name!r}; tensor files lie in the folder itself")):
        ModelDirectory.open(model)


@pytest.mark.parametrize("weight_map", [["a"], {"w": 3}, {"w": ["a", "b"]}, "a"])
def test_an_index_of_another_form_is_refused(model, weight_map):
    (model / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConfigError, match="has a weight_map that names no files"):
        ModelDirectory.open(model)


@pytest.mark.parametrize(
    "header",
    [
        DEEP,
        "[]",
        {"w": 3},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [-80, -72]}},
        {"w": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [8, 0]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [1 << 40, (1 << 40) + 8]}},
        {"w": {"dtype": "X9", "shape": [2], "data_offsets": [0, 1 << 40]}},
        {"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 8]}},
    ],
)
def test_a_header_that_points_outside_its_file_is_refused(model, header):
    write_safetensors(model / "model.safetensors", header)
    with pytest.raises(ConfigError, match="copy it again"):
        ModelDirectory.open(model)


@pytest.mark.parametrize("name", ["../other/shard-00000", "/etc/passwd", "shard-00000/../../x", 7, None])
def test_a_manifest_names_shards_of_its_own_folder_alone(tmp_path, name):
    folder = random_shards(tmp_path / "shards")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0]["name"] = name
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorpusError, match=re.escape(f"names the shard {name!r}; shard-00000 and so on are expected")):
        Shards.open(folder)


@pytest.mark.parametrize("read", [lambda path: list(read_jsonl(path)), lambda path: ModelDirectory.open(path.parent)])
def test_json_without_an_end_to_its_depth_is_bad_json(tmp_path, read):
    (tmp_path / "config.json").write_text(DEEP)
    with pytest.raises((CorpusError, ConfigError), match="is no JSON"):
        read(tmp_path / "config.json")


def test_a_line_that_unpacks_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 2**20)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "' + b"a" * 2**26))
    assert path.stat().st_size < 2**17
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorpusError, match="has a line of more than 1048576 bytes, decompressed"):
        list(lines.read_jsonl_part(Part(path, 0, path.stat().st_size)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15  # KiB: half of what it would unpack to


def entities(depth):
    """A document type in which each entity is fifty of the one before."""
    names = [f'<!ENTITY e{n} "{f"&e{n - 1};" * 50}">' for n in range(1, depth)]
    return f'<!DOCTYPE page [<!ENTITY e0 "{"x" * 1000}">{"".join(names)}]>'


PAGE = "<page{x}><title>t</title><id>1</id><revision><id>2</id><text>{text}</text></revision></page>"


@pytest.mark.parametrize("place", [{"x": "", "text": "&e6;"}, {"x": ' a="&e6;"', "text": "a"}])
def test_entities_of_entities_are_not_expanded(place):
    with pytest.raises(BrokenPageError):
        parse_page((entities(7) + PAGE.format(**place)).encode())
    with pytest.raises(CorpusError, match="<siteinfo> is broken"):
        parse_site(b"<siteinfo><sitename>" + place["text"].encode() + b"&e6;</sitename></siteinfo>", "dump.xml")


def test_an_entity_does_not_bring_in_a_file(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("very secret")
    outside = f'<!DOCTYPE page [<!ENTITY s SYSTEM "file://{secret}">]>'
    with pytest.raises(BrokenPageError, match="holds the element or entity '&s;'"):
        parse_page((outside + PAGE.format(x="", text="&s;")).encode())
    page = parse_page((outside + PAGE.format(x="", text="a").replace("<title>t", "<title>&s;")).encode())
    assert "secret" not in page.title
    linked = f'<!DOCTYPE page SYSTEM "file://{secret}">'
    assert parse_page((linked + PAGE.format(x="", text="a")).encode()).text == "a"


def test_a_script_beside_a_dataset_is_not_run(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\nimport datasets\n")
    source = HubSource(str(folder), None, None, None, None)
    with pytest.raises(CorpusError, match="cannot be opened"):
        source._open()
    assert not (tmp_path / "trace").exists()
