"""The plan of a run: what it says of tokens and epochs is what is read, and too many epochs end it before it starts."""

import json
import re
from collections import Counter

import pytest
from omegaconf import OmegaConf

from configs.loader import ConfigError
from data_prep.document import CorpusError
from data_prep.tokens.shards import Shards
from recipes.training.data.mixture import read_mixture
from recipes.training.data.packing import TokenStream
from recipes.training.data.plan import plan_data, show_data_plan
from tests.support import random_shards, tiny_tokenizer

SEQ_LEN, ROWS = 64, 8
STAGES = [{"weights": {"ko": 3, "en": 1}}, {"from_step": 10, "weights": {"ko": 1, "en": 1}, "ramp_steps": 4}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {name: random_shards(folder / name, seed=seed) for seed, name in enumerate(("ko", "en"))}


def make_plan(folders, steps=20, max_epochs=None, stages=STAGES):
    sources = {name: {"shards": str(path), "lang": name} for name, path in folders.items()}
    sources["ko"]["max_epochs"] = max_epochs
    cfg = OmegaConf.create({"seq_len": SEQ_LEN, "global_batch_tokens": ROWS * SEQ_LEN, "steps": steps, "seed": 0})
    mixture = read_mixture({"sources": sources, "stages": stages}, cfg.global_batch_tokens)
    return plan_data(cfg, mixture, [TokenStream(Shards.open(one.path), SEQ_LEN, 0) for one in mixture.sources])


def test_the_plan_is_what_the_batches_read(folders):
    plan = make_plan(folders)
    read: Counter[int] = Counter()
    for step in range(plan.steps):
        read.update(source for source, _ in plan.order.step(step))
    assert plan.tokens(20) == {"ko": read[0] * SEQ_LEN, "en": read[1] * SEQ_LEN}
    assert plan.tokens(0) == {"ko": 0, "en": 0}
    assert plan.epochs(20)["ko"] == read[0] * SEQ_LEN / Shards.open(folders["ko"]).num_tokens
    assert sum(part["tokens"] for part in plan.ledger(20).values()) == 20 * ROWS * SEQ_LEN


def test_the_written_plan_adds_up_by_source_and_stage(folders, tmp_path):
    plan = make_plan(folders)
    plan.write(tmp_path)
    written = json.loads((tmp_path / "mixture.json").read_text())
    for name in ("ko", "en"):
        assert sum(stage["tokens"][name] for stage in written["stages"]) == written["sources"][name]["tokens"]
    assert [stage["shares"] for stage in written["stages"]] == [{"ko": 0.75, "en": 0.25}, {"ko": 0.5, "en": 0.5}]
    assert sum(source["tokens"] for source in written["sources"].values()) == 20 * ROWS * SEQ_LEN
    assert written["sources"]["ko"]["shards"] == str(folders["ko"])


def test_the_table_has_a_row_per_source_and_a_column_per_stage(folders):
    head, *rows = make_plan(folders, stages=[*STAGES, {"from_step": 50}]).table().splitlines()
    assert head == "20 steps x 8 sequences x 64 tokens = 10,240 tokens"
    assert re.findall(r"step \d+|epochs|at most", rows[0]) == ["step 0", "step 10", "step 50", "epochs", "at most"]
    assert "ramp of 4" in rows[1]
    assert "not reached" in rows[1]
    assert re.match(r"ko +ko +[\d,]+ +75 % +50 % +50 % +[\d,]+ +\d+ +[\d.]+ +any$", rows[2])
    assert rows[3].startswith("en ")


def test_more_epochs_than_allowed_end_the_run_before_it_starts_and_name_the_steps_within(folders):
    with pytest.raises(
        ConfigError, match=r"ko: is read .* times by step 900; max_epochs is 2; lower its weight"
    ) as error:
        make_plan(folders, steps=900, max_epochs=2)
    within = int(re.search(r"or set steps=(\d+)$", error.value.problems[0])[1])
    assert make_plan(folders, steps=within, max_epochs=2).epochs(within)["ko"] <= 2
    with pytest.raises(ConfigError, match="max_epochs"):
        make_plan(folders, steps=within + 1, max_epochs=2)


def test_the_same_text_under_two_names_is_refused(folders):
    with pytest.raises(ConfigError, match=r"en: .*ko holds the same text as ko; .* name it once, with the sum of"):
        make_plan({"ko": folders["ko"], "en": folders["ko"]})


def test_another_mixture_has_another_identity_and_another_length_has_not(folders):
    here = make_plan(folders).identity()
    assert here == make_plan(folders, steps=30).identity()
    assert here["mixture"] == "0.75 + 0.25 from step 0; 0.5 + 0.5 from step 10, reached by step 14"
    assert here != make_plan(folders, stages=STAGES[:1]).identity()
    swapped = {"ko": folders["en"], "en": folders["ko"]}
    assert here["data"] != make_plan(swapped).identity()["data"]


def test_the_data_plan_prints_the_table_and_the_beginnings_of_the_first_documents(folders, tmp_path, capsys):
    plan = make_plan(folders, stages=[{"weights": {"ko": 1, "en": 0}}, {"from_step": 9, "weights": {"ko": 0, "en": 1}}])
    show_data_plan(plan, str(tiny_tokenizer(tmp_path)))
    out = capsys.readouterr().out
    assert out.startswith(plan.table())
    name = plan.sources[0].documents(0)[0]
    assert re.search(rf"^ko: the first of its sequences in step 0 has \d+ documents\n  {name}, \d+ tokens: ", out, re.M)
    assert "\nen: " not in out  # the first step reads nothing of it
    show_data_plan(plan, None)  # no tokenizer at hand: ids
    first = plan.sources[0].sample(0).tokens[:5].tolist()
    assert " ".join(map(str, first)) in capsys.readouterr().out


def test_shards_that_are_not_complete_are_refused(tmp_path):
    (tmp_path / "cut").mkdir()
    with pytest.raises(CorpusError, match=r"has no manifest\.json"):
        make_plan({"ko": tmp_path / "cut", "en": tmp_path / "cut"})
