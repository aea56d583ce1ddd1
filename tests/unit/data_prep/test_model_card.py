"""Licences by shape and by card, names that they ask for, headers, and the stages of a model."""

import json

import pytest
import yaml

from data_prep.model_card import (
    LICENCES,
    data_licence,
    header,
    licence_of,
    licence_text,
    name_problem,
    read_header,
    stages_of,
    write_notice,
)

LLAMA3 = {"model_type": "llama", "vocab_size": 128_256, "rope_theta": 500_000.0}


def scaled(factor):
    return LLAMA3 | {"rope_scaling": {"rope_type": "llama3", "factor": factor}}


@pytest.mark.parametrize(
    ("config", "licence"),
    [
        (LLAMA3, "llama3"),
        (LLAMA3 | {"vocab_size": 145_000}, "llama3"),  # extended
        (scaled(8.0), "llama3.1"),
        (scaled(32.0), "llama3.2"),
        (
            {
                "model_type": "llama",
                "vocab_size": 128_256,
                "rope_parameters": {"rope_type": "llama3", "factor": 32.0, "rope_theta": 500_000.0},
            },
            "llama3.2",  # as transformers 5 writes it
        ),
        (LLAMA3 | {"vocab_size": 32_000, "rope_theta": 10_000.0}, None),  # Llama-2, and others of its shape
        (LLAMA3 | {"model_type": "mistral"}, None),
    ],
)
def test_a_llama3_is_known_by_its_shape(tmp_path, config, licence):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert licence_of(tmp_path) == licence_of(tmp_path / "absent", config) == licence


def test_a_card_has_the_first_word_on_the_licence(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(scaled(8.0)))
    for text, licence in (
        ("---\nlicense: llama3.3\n---\n", "llama3.3"),
        ("---\nlicense: other\nlicense_name: llama3\n---\n# x", "llama3"),
        ("no header", "llama3.1"),
        ("---\nlicense: [\n---\n", "llama3.1"),
    ):
        (tmp_path / "README.md").write_text(text)
        assert licence_of(tmp_path) == licence, text


@pytest.mark.parametrize(
    ("licence", "name", "is_right"),
    [
        ("llama3", "Llama-3-Open-Ko-8B", True),
        ("llama3", "llama3-ko", True),
        ("llama3", "Ko-Llama-3", False),
        ("llama3.1", "Llama-Ko", True),
        ("llama3.1", "Ko", False),
        ("llama2", "Ko", True),
        ("apache-2.0", "Ko", True),
        (None, "Ko", True),
    ],
)
def test_the_name_of_a_derived_model(licence, name, is_right):
    problem = name_problem(licence, name)
    assert (problem is None) == is_right
    assert is_right or f"the name {name!r} does not begin with 'Llama" in problem


def test_the_header_is_read_back_and_has_no_empty_facts(tmp_path):
    facts = {"license": "llama3", "base_model": None, "tags": [], "language": ["ko", "en"], "name": "한국어: #1"}
    (tmp_path / "README.md").write_text(f"{header(facts)}\n\n# title\n---\n", encoding="utf-8")
    assert read_header(tmp_path) == {"license": "llama3", "language": ["ko", "en"], "name": "한국어: #1"}
    assert yaml.safe_load(header(facts).split("---")[1]) == read_header(tmp_path)


def test_every_licence_of_metas_is_told_whole():
    for name, one in LICENCES.items():
        text = licence_text(name)
        assert one.agreement in text
        assert one.policy in text
        assert one.notice in text
        assert (one.name_begins is None) == (name == "llama2")
    assert licence_text("apache-2.0") == "`apache-2.0`, that of the model it was made from."


def test_a_notice_is_written_where_there_is_none(tmp_path):
    write_notice(tmp_path, "apache-2.0")
    assert not list(tmp_path.iterdir())
    write_notice(tmp_path, "llama3.1")
    assert (tmp_path / "NOTICE").read_text(encoding="utf-8").startswith("Llama 3.1 is licensed under the Llama 3.1")
    (tmp_path / "NOTICE").rename(tmp_path / "Notice.txt")
    write_notice(tmp_path, "llama3.1")
    assert not (tmp_path / "NOTICE").exists()


def test_a_source_has_the_stated_licence_before_that_of_wikipedia():
    assert data_licence("kowiki", {}).startswith("CC BY-SA 4.0")
    assert data_licence("kowiki", {"kowiki": "CC0 1.0"}) == "CC0 1.0"
    assert data_licence("web", {}) is None


def test_stages_are_followed_through_merges(tmp_path):
    cpt = {"kind": "cpt", "step": 10}
    for name, manifest in (
        ("base", {"kind": "model", "stages": [cpt]}),
        ("merged", {"kind": "merge", "inputs": {"target": {"path": str(tmp_path / "base")}, "plus": {"path": "i"}}}),
        ("old", {"kind": "model"}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    merge = {"kind": "merge", "models": {"target": str(tmp_path / "base"), "plus": "i"}}
    assert stages_of(tmp_path / "merged") == [cpt, merge]
    assert stages_of(tmp_path / "old") == stages_of(tmp_path / "none") == []
