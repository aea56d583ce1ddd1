"""Every form of the key `data`, the shares that follow from it, and every way of getting it wrong."""

import re
from fractions import Fraction

import pytest
import yaml
from omegaconf import OmegaConf

from configs.loader import ConfigError
from data_prep.dialogue.chat_rows import ChatSource
from recipes.training.data.mixture import read_mixture
from tests.support import ROOT

BATCH = 1000
"""Tokens of a step."""


@pytest.fixture
def ko(tmp_path):
    (tmp_path / "tokens-ko").mkdir()
    return str(tmp_path / "tokens-ko")


@pytest.fixture
def en(tmp_path):
    (tmp_path / "tokens-en").mkdir()
    return str(tmp_path / "tokens-en")


@pytest.fixture
def chat(tmp_path):
    (tmp_path / "chat.jsonl").touch()
    return str(tmp_path / "chat.jsonl")


@pytest.fixture
def sources(ko, en):
    return {"ko": {"shards": ko, "lang": "ko"}, "en": {"shards": en, "lang": "en"}}


def shares(data):
    return [tuple(map(float, stage.shares)) for stage in read_mixture(data, BATCH).stages]


def problems(data):
    with pytest.raises(ConfigError) as error:
        read_mixture(data, BATCH)
    return error.value.problems


def test_a_path_or_a_list_of_paths_or_of_weighted_entries(ko, en, chat):
    entry = read_mixture(ko, BATCH).sources[0]
    assert (entry.name, entry.kind, str(entry.path)) == ("tokens-ko", "shards", ko)
    entry = read_mixture(chat, BATCH).sources[0]
    assert (entry.name, entry.kind, str(entry.path)) == ("chat", "chat", chat)
    assert shares(ko) == [(1.0,)]
    assert shares([ko, en]) == [(0.5, 0.5)]
    mixed = read_mixture(OmegaConf.create([{"chat": chat, "weight": 3, "max_epochs": 2}, ko]), BATCH)
    assert [(s.name, s.max_epochs) for s in mixed.sources] == [("chat", 2), ("tokens-ko", None)]
    assert mixed.stages[0].shares == (Fraction(3, 4), Fraction(1, 4))


def test_sources_of_a_list_that_are_called_alike_get_names_of_their_own(tmp_path):
    folders = [tmp_path / snapshot / "tokens" for snapshot in ("2023", "2024")]
    for folder in folders:
        folder.mkdir(parents=True)
    assert [s.name for s in read_mixture([str(f) for f in folders], BATCH).sources] == ["tokens", "tokens-1"]


def test_a_file_and_the_same_mapping_inline_are_one_mixture(tmp_path, sources):
    mapping = {
        "sources": sources,
        "stages": [
            {"weights": {"ko": 0.7, "en": 0.3}},
            {"from_step": 2000, "weights": {"ko": 9, "en": 1}, "ramp_steps": 500},
        ],
    }
    path = tmp_path / "mixture_x.yaml"
    path.write_text(yaml.safe_dump(mapping, sort_keys=False))
    mixture = read_mixture(str(path), BATCH)
    assert mixture == read_mixture(mapping, BATCH) == read_mixture(OmegaConf.create(mapping), BATCH)
    assert [stage.from_step for stage in mixture.stages] == [0, 2000]
    assert mixture.describe() == "0.7 + 0.3 from step 0; 0.9 + 0.1 from step 2000, reached by step 2500"


def test_english_replay_is_the_share_of_english_and_the_others_share_the_rest_by_their_weights(tmp_path, sources):
    for name, lang, weight in (("code", "en", 1), ("web", "ko", 3)):
        (tmp_path / name).mkdir()
        sources[name] = {"shards": str(tmp_path / name), "lang": lang, "weight": weight}
    data = {"sources": sources, "english_replay": 0.3, "stages": [{}, {"from_step": 5, "english_replay": 0.0}]}
    mixture = read_mixture(data, BATCH)
    assert mixture.stages[0].shares == tuple(Fraction(n, 1000) for n in (175, 150, 150, 525))  # ko, en, code, web
    assert mixture.stages[1].shares == (Fraction(1, 4), 0, 0, Fraction(3, 4))


def test_stages_may_be_told_in_tokens_of_the_run(sources):
    data = {"sources": sources, "stages": [{}, {"from_tokens": 2_000_500, "ramp_tokens": 100_000}]}
    stage = read_mixture(data, BATCH).stages[1]
    assert (stage.from_step, stage.ramp_steps) == (2001, 100)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/data").glob("mixture_*.yaml")), ids=lambda p: p.stem)
def test_the_mixtures_that_come_with_the_project_lack_nothing_but_their_text(path):
    told = [problem for problem in problems(str(path)) if "does not exist" not in problem]
    assert told == []


def with_stages(sources, *stages, **more):
    return {"sources": sources, "stages": list(stages), **more}


def late(**changes):
    return {"from_step": 5, **changes}


@pytest.mark.parametrize(
    ("stages", "more", "expected"),
    [
        ([], {}, "stages: is empty; give at least one, or leave the key out"),
        ([7], {}, "stages[0]: is 7; a mapping is expected; write it with the keys from_step"),
        ([{"form_step": 3}], {}, "stages[0].form_step: unknown key; did you mean 'from_step'?"),
        ([{"from_step": 1.5}], {}, "stages[0].from_step: Value '1.5' of type 'float' could not be converted"),
        ([{"weights": {"kr": 1}}], {}, "stages[0].weights.kr: no such source; the known ones are ko, en"),
        ([{"weights": {"ko": 1}}], {}, "stages[0].weights: lacks en; every source needs one; give 0 to leave it out"),
        ([{"weights": {"ko": -1, "en": 1}}], {}, "stages[0]: weight -1.0 of ko is not a number above 0; set one, or 0"),
        ([{"weights": {"ko": float("nan"), "en": 1}}], {}, "stages[0]: weight nan of ko is not a number above 0"),
        ([{"weights": {"ko": 0, "en": 0}}], {}, "stages[0]: all weights are 0; at least one above 0 is needed; give"),
        (
            [{"weights": {"ko": 1, "en": 0}}],
            {},
            "en: weight 0 in every stage is not a number above 0 anywhere; set",
        ),
        (
            [late()],
            {},
            "stages[0]: starts at step 5 with a ramp of 0; the first stage starts at step 0 without one",
        ),
        ([{"ramp_steps": 2}], {}, "stages[0]: starts at step 0 with a ramp of 2; the first stage starts at step 0"),
        ([{}, {}], {}, "stages[1]: does not say where it starts; all but the first must; set from_step or from_tokens"),
        ([{}, late(from_tokens=9)], {}, "stages[1].from: is 5 steps and 9 tokens; one of the two says it; remove"),
        ([{}, late(ramp_steps=-2)], {}, "stages[1].ramp: -2 is below 0; 0 or more is expected; raise it"),
        ([{}, late(), late()], {}, "stages[2]: starts at step 5, the one before at 5; stages stand in rising order"),
        (
            [{}, late(ramp_steps=9), {"from_step": 13}],
            {},
            "stages[1]: its ramp ends at step 14; stages[2] starts at",
        ),
        ([{}], {"english_replay": 30}, "stages[0]: english_replay 30.0 is not between 0 and 1; set it within"),
        (
            [{"weights": {"ko": 1, "en": 0}}, late()],
            {"english_replay": 0.3},
            "stages[0]: english_replay 0.3 leaves 0.3 to sources English, none has a weight above 0; add one, or set",
        ),
        ([{}], {"english_repley": 0.3}, "data.english_repley: unknown key; did you mean 'english_replay'?"),
    ],
)
def test_bad_stages_are_told_with_what_to_change(sources, stages, more, expected):
    assert any(problem.startswith(expected) for problem in problems(with_stages(sources, *stages, **more)))


def test_bad_sources_are_told_all_at_once(tmp_path, ko, chat):
    told = problems(
        {
            "sources": {
                "a": {"shard": ko},
                "b": {"shards": str(tmp_path / "absent")},
                "c": {"shards": ko, "chat": chat},
                "d": {"shards": chat},
                "e": {"chat": ko},
                "f": {"shards": ko, "max_epochs": 0, "weight": "much"},
                "g": {"shards": ko, "max_epochs": 0},
                "h": ko,
                "i j": {"shards": ko},
            },
            "stages": [{"from_stepp": 1}],
        }
    )
    expected = [
        "sources.i j: the name 'i j' is no plain word; use letters, digits and . _ -",
        "sources.a.shard: unknown key; did you mean 'shards'?",
        f"sources.b: {tmp_path / 'absent'} does not exist; give token shards or a chat-example file",
        "sources.c: has shards and chat; give exactly one of them",
        f"sources.d: shards names the file {chat}; a file is read as chat: use that key",
        f"sources.e: chat names the folder {ko}; a folder is read as shards (or as hub, if saved by datasets): use",
        "sources.f.weight: Value 'much' of type 'str' could not be converted to Float; give a value of that type",
        "sources.g.max_epochs: 0.0 is not above 0; set it above, or leave it out",
        f"sources.h: is {ko!r}; a mapping is expected; write it with the keys shards, chat, hub",
        "stages[0].from_stepp: unknown key; did you mean 'from_step'?",
    ]
    assert len(told) == len(expected)
    for one, wanted in zip(told, expected, strict=True):
        assert one.startswith(wanted)


def test_chat_examples_of_a_hub_and_of_a_stated_form(chat):
    commit = "0" * 40
    hub = {"hub": "nlpai-lab/kullm-v2", "split": "train", "revision": commit, "weight": 2}
    stated = {"chat": chat, "format": "prompt", "fields": {"prompt": "Q"}}
    first, second = read_mixture([hub, stated], 1).sources
    assert (first.name, first.kind, first.weight) == ("kullm-v2", "chat", 2)
    assert first.chat == ChatSource("nlpai-lab/kullm-v2", hub=True, split="train", revision=commit)
    assert (second.kind, second.chat) == ("chat", ChatSource(chat, form="prompt", fields=(("prompt", "Q"),)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "train"}, "data[0]: split beside chat; chat has no such key; remove it"),
        ({"format": "kullm"}, "data[0].format: 'kullm' is not known; one of messages, sharegpt, alpaca, prompt"),
        ({"hub": "a/b"}, "data[0]: has chat and hub; give exactly one of them"),
        ({"chat": None, "hub": "a/b", "revision": "main"}, "data[0].revision: 'main' is no commit; tags and"),
    ],
)
def test_keys_of_another_kind_of_source_are_refused(chat, changes, message):
    assert problems([{"chat": chat} | changes])[0].startswith(message)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (5, "data: is 5; a path, a list of paths or of {shards | chat | hub: path, weight: share}, a mixture file"),
        ([], "data: is empty; give at least one folder of token shards or chat-example file"),
        ({"sources": {}}, "data: is empty; give at least one folder"),
        ({"sorces": {}}, "data.sorces: unknown key; did you mean 'sources'?"),
        ({"english_replay": 0.5}, "data.sources: no value; set it"),
        ([{"weight": 2}], "data[0]: has none of shards, chat, hub; give exactly one of them"),
        ([7], "data[0]: is 7; a mapping is expected"),
        ("absent.yaml", "the file does not exist; give an existing YAML file"),
        ("/does/not/exist", "data[0]: /does/not/exist does not exist; give token shards or a chat-example file"),
    ],
)
def test_data_of_another_form_is_refused(data, expected):
    assert any(problem.startswith(expected) for problem in problems(data))


def test_english_replay_needs_to_know_the_languages(sources):
    del sources["ko"]["lang"]
    expected = (
        "stages[0]: english_replay is 0.3, but ko has no lang; it must be known which sources are English; "
        "add lang: en or lang: ko"
    )
    assert problems({"sources": sources, "english_replay": 0.3}) == [expected]


def test_the_error_names_the_mixture_file(tmp_path):
    path = tmp_path / "mixture_bad.yaml"
    path.write_text("sources: {ko: {shards: /absent}}\n")
    with pytest.raises(ConfigError, match=re.escape(f"{path}: 1 problem(s)\n  - sources.ko: /absent does not exist")):
        read_mixture(str(path), BATCH)
