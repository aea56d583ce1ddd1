from collections import Counter

import pytest

from configs.loader import ConfigError, load
from data_prep.dialogue import generate
from data_prep.dialogue.topics import fill_prompt, make_seeds, prompt_problems
from tests.support import ROOT

FIELDS = {"food": ["soup", "rice"], "work": ["mail", "soup", "leave"]}
CONFIGS = sorted((ROOT / "configs/data").glob("dialogue_*.yaml"))


def seeds(seed=0):
    return make_seeds(FIELDS, ["short", "long"], ["why", "how", "what"], [2, 4], seed)


def test_every_topic_comes_once_in_every_style_and_from_every_angle():
    made = seeds()
    assert [seed.number for seed in made] == list(range(30))
    assert len({(seed.field, seed.topic, seed.style, seed.angle) for seed in made}) == 30
    assert {seed.turns for seed in made} == {2, 4}


def test_any_beginning_is_spread_over_the_topics():
    made = seeds()
    for length in range(len(made)):
        counts = Counter((seed.field, seed.topic) for seed in made[:length])
        assert max(counts.values(), default=0) <= -(-length // 5)


def test_the_order_depends_on_the_seed_alone():
    assert seeds() == seeds()
    assert seeds() != seeds(1)


def test_a_prompt_is_filled_with_the_parts_of_its_seed():
    seed = seeds()[0]
    filled = fill_prompt("$field|${topic}|$style|$angle|$turns|$$5 {}", seed)
    assert filled == f"{seed.field}|{seed.topic}|{seed.style}|{seed.angle}|{seed.turns}|$5 {{}}"


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ("$topic $turns costs 5 $", r"prompt: holds a lone \$; \$field, "),
        ("$topic $turns $mood", r"prompt: \$mood is not known; "),
        ("$turns", r"prompt: lacks \$topic; "),
        ("$topic", r"prompt: lacks \$turns; "),
    ],
)
def test_a_bad_prompt_is_a_problem(prompt, problem):
    assert len(prompt_problems(prompt)) == 1
    with pytest.raises(ConfigError, match=problem):
        raise ConfigError("x", prompt_problems(prompt))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_loads(path, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "k" * 39)
    cfg = load(generate.GenerateConfig, path, ["output_dir=x", "model=m"], generate.check)
    assert sum(len(entry.topics) for entry in cfg.topics) >= 100
    assert len(cfg.topics) >= 10
    made = make_seeds({entry.field: entry.topics for entry in cfg.topics}, cfg.styles, cfg.angles, cfg.turns, 0)
    assert len(made) >= 4 * cfg.dialogues


def test_there_are_shipped_configurations():
    assert {path.stem for path in CONFIGS} >= {"dialogue_topics", "dialogue_gemini"}


def test_a_file_of_ones_own_replaces_the_topics(tmp_path):
    own = tmp_path / "own.yaml"
    base = ROOT / "configs/data/dialogue_topics.yaml"
    own.write_text(f"base: {base}\nmodel: m\ntopics: [{{field: tea, topics: [보이차, green tea]}}]\nturns: [2]\n")
    cfg = load(generate.GenerateConfig, own, ["output_dir=x"], generate.check)
    assert [list(entry.topics) for entry in cfg.topics] == [["보이차", "green tea"]]
    assert len(cfg.styles) >= 5


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("api=grpc", r"api: 'grpc' is not known; one of openai, gemini"),
        ("structured_output=yes!", r"structured_output: 'yes!' is not known"),
        ("concurrency=0", r"concurrency: 0 is not positive"),
        ("token_budget=-5", r"token_budget: -5 is not positive"),
        ("turns=[3]", r"turns: \[3\]; even numbers from 2 are expected"),
        ("turns=[]", r"turns: has no entry; at least one"),
        ("styles=[a, a]", r"styles: 'a' stands there more than once"),
        ("topics=[{field: f, topics: []}]", r"topics of 'f': has no entry"),
        ("price_in=1", r"price_in, price_out: one has no value"),
        ("max_dropped_share=2", r"max_dropped_share: 2.0 is above 1"),
        ("base_url=localhost:8000", r"base_url: 'localhost:8000' is no http\(s\) address"),
        ("base_url=http://host:port/v1", r"base_url: is no address"),
        ("modle=m", r"modle \(command line\): unknown key; did you mean 'model'"),
    ],
)
def test_a_bad_setting_is_named_before_anything_is_asked(override, problem):
    with pytest.raises(ConfigError, match=problem):
        load(generate.GenerateConfig, CONFIGS[-1], ["output_dir=x", "model=m", override], generate.check)
