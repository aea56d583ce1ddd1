"""The documented command: it learns the answers, at any world size, beside token shards; and its errors."""

import itertools
import json
import re
import shutil
import sys

import pytest
import torch
import yaml

from configs.loader import ConfigError, load
from data_prep.dialogue.chat_rows import ChatSource
from data_prep.dialogue.chat_template import LLAMA3, ChatTemplate
from data_prep.tokens.shards import Shards
from data_prep.tokens.tokenizer import load_tokenizer
from recipes import sft
from recipes.training.data.batches import Batches
from recipes.training.data.chat_examples import Policies
from recipes.training.data.order import SampleOrder, Stage, as_shares
from recipes.training.data.packing import ChatExamples, TokenStream
from recipes.training.data.sources import open_template
from recipes.training.model.loss import IGNORE
from tests.recipes.conftest import write_sft_config
from tests.support import launch, losses, metrics, random_shards, run_here, tune_run

SEQ_LEN, ROWS = 128, 8
OWN = "{% for m in messages %}{{ m.content ~ eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def straight(tmp_path_factory, base, chat_file):
    """The documented command on two ranks; tests only read its run folder."""
    folder = tmp_path_factory.mktemp("straight")
    tune_run(2, "sft", write_sft_config(folder, base, chat_file))
    return folder / "run"


@pytest.fixture
def refused(sft_config):
    """Runs the recipe with settings it must refuse, and returns its exit code and standard error."""

    def run(*overrides: str) -> tuple[int, str]:
        result = run_here(sft.main, sft_config, *overrides)
        assert "Traceback" not in result.stderr
        assert not (sft_config.parent / "run").exists()
        return result.returncode, result.stderr

    return run


def chat_examples(base, chat_file):
    template = ChatTemplate(load_tokenizer(base), LLAMA3)
    return ChatExamples(ChatSource(str(chat_file)), template, SEQ_LEN, 0, Policies())


def targets_of_steps(sources, weights, steps):
    """Returns the ids learnt at each step by one rank that reads the sources itself."""
    batches = Batches(sources, SampleOrder([Stage(0, as_shares(weights))], ROWS, 0), 1, 0, 1)
    read = [[b.targets.flatten() for b in batches.micro_batches(step, torch.device("cpu"))] for step in range(steps)]
    return [(row := torch.cat(rows))[row != IGNORE] for rows in read]


def test_two_ranks_learn_the_answers_alone_and_the_loss_falls(straight, base, chat_file):
    rows = metrics(straight)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert losses(straight)[-1] < losses(straight)[0] - 0.2
    expected = targets_of_steps([chat_examples(base, chat_file)], [1], len(rows))
    learnt = [0, *(row["train/targets"] for row in rows)]
    assert [b - a for a, b in itertools.pairwise(learnt)] == [len(step) for step in expected]
    text = load_tokenizer(base).decode(expected[0].tolist(), skip_special=False)
    assert re.fullmatch(r"(It is \d+\.<\|eot_id\|>)+", text)
    ledger = json.loads((straight / "checkpoints/step-00000006/state.json").read_text())["ledger"]
    assert ledger["tokens"] == 6 * ROWS * SEQ_LEN == ledger["trained"] + ledger["masked"] + ledger["padded"]
    assert ledger["padded"] > 0


def test_one_rank_gives_the_losses_of_two(tmp_path, straight, base, chat_file):
    config = write_sft_config(tmp_path, base, chat_file)
    launch(sys.executable, "-m", "recipes.sft", "--config", str(config), "micro_batch=4")
    assert losses(tmp_path / "run") == pytest.approx(losses(straight), rel=1e-5)
    assert metrics(tmp_path / "run")[-1]["train/targets"] == metrics(straight)[-1]["train/targets"]


def test_shards_are_mixed_in_by_weight_and_over_long_examples_dropped_and_counted(tmp_path, base, chat_file, shards):
    long = {"role": "assistant", "content": "It is long." * 40}
    example = {"id": "long", "messages": [{"role": "user", "content": "What is long?"}, long]}
    chat = tmp_path / "chat.jsonl"
    chat.write_text(chat_file.read_text() + json.dumps(example) + "\n")
    config = write_sft_config(tmp_path, base, chat)
    settings = yaml.safe_load(config.read_text())
    data = [{"chat": str(chat), "weight": 3}, {"shards": str(shards), "weight": 1}]
    config.write_text(yaml.safe_dump(settings | {"data": data, "over_long": "drop", "steps": 2}))
    result = tune_run(2, "sft", config)
    assert result.stdout.count(f"{chat}: 25 examples read, 24 to learn from; dropped 1 over_long") == 1
    template = ChatTemplate(load_tokenizer(base), LLAMA3)
    examples = ChatExamples(ChatSource(str(chat)), template, SEQ_LEN, 0, Policies(over_long="drop"))
    sources = [examples, TokenStream(Shards.open(shards), SEQ_LEN, 0)]
    first, second = map(len, targets_of_steps(sources, [3, 1], 2))
    assert [row["train/targets"] for row in metrics(tmp_path / "run")] == [first, first + second]
    told = json.loads((tmp_path / "run/mixture.json").read_text())["sources"]["chat"]["examples"]
    assert (told["in"], told["out"], told["dropped"]) == (25, 24, {"over_long": 1})
    (dropped,) = map(json.loads, (tmp_path / "run/dropped_examples.jsonl").read_text().splitlines())
    assert (dropped["place"], dropped["reason"]) == (f"{chat}:25", "over_long")


def test_a_template_found_in_the_weights_is_used_and_a_base_without_one_is_refused(sft_config, base, refused, tmp_path):
    code, message = refused("chat_template=weights")
    assert code == 1
    assert f"error: {base} has no chat template; chat_template.jinja or a chat_template in" in message
    instruct = shutil.copytree(base, tmp_path / "instruct")
    (instruct / "chat_template.jinja").write_text(OWN)
    cfg = load(sft.SftConfig, sft_config, [f"weights={instruct}", "chat_template=weights"], sft.check)
    assert open_template(cfg).template == OWN
    assert open_template(load(sft.SftConfig, sft_config, [], sft.check)).template == LLAMA3


def test_an_over_long_example_is_an_error_that_names_it(refused):
    code, message = refused("seq_len=32")
    assert code == 1
    assert re.search(
        r"chat.jsonl:1: example ex-0 has \d+ tokens; seq_len is 32; raise it, or set over_long=drop", message
    )
    code, message = refused("seq_len=16", "over_long=drop")
    assert code == 1
    assert "chat.jsonl holds no example of at most 16 tokens to learn from" in message
    assert "24 examples read, 0 to learn from; dropped 24 over_long" in message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", ":2: is no JSON: Expecting property name"),
        ('"text"', ":2: holds '\"text\"\\n'; a JSON object is expected; mend or remove the line, or set invalid=drop"),
        ('{"id": "x"}', ":2: {'id': 'x'} has the fields id; messages: [{role, content}] or conversations"),
        (
            '{"id": "x", "messages": [{"role": "assistant", "content": "a"}]}',
            ":2: turn 0 has the role 'assistant'; 'user' is expected; make the roles alternate",
        ),
        (
            '{"id": "x", "messages": [{"role": "user", "content": "a"}]}',
            "the last message is the user's; the assistant's is expected; add or remove a message",
        ),
    ],
)
def test_a_bad_line_of_a_chat_file_is_named(tmp_path, chat_file, refused, line, message):
    path = tmp_path / "chat.jsonl"
    path.write_text(f"{chat_file.read_text().splitlines()[0]}\n{line}\n")
    code, error = refused(f"data={path}")
    assert code == 1
    assert message in error


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["weights=null"], "weights: no value; SFT starts from a Hugging Face directory with its tokenizer"),
        (["weights=/does/not/exist"], "weights: /does/not/exist does not exist; give an existing path"),
        (
            ["chat_template=vicuna"],
            "chat_template: 'vicuna' is not known; one of weights, weights:NAME, llama3, llama2,",
        ),
        (["chat_template=/gone.jinja"], "chat_template: /gone.jinja does not exist; give an existing .jinja file"),
        (["over_long=cut"], "over_long: 'cut' is not known; one of error, drop, split"),
        (["invalid=split"], "invalid: 'split' is not known; one of error, drop"),
        (["train_on=first"], "train_on: 'first' is not known; one of all, last"),
        (
            ["over_long=split", "train_on=last"],
            "over_long: split with train_on=last; only a dialogue's last part would",
        ),
        (
            ["template_date=tomorrow"],
            "template_date: 'tomorrow': Invalid isoformat string: 'tomorrow'; write it as YYYY",
        ),
        (["show=-1"], "show: -1 is negative; set it to 0 or more"),
        (["data=/does/not/exist"], "/does/not/exist does not exist; give token shards or a chat-example file"),
        (["chat_tamplate=llama3"], "chat_tamplate (command line): unknown key; did you mean 'chat_template'?"),
    ],
)
def test_bad_settings_are_refused_by_name(sft_config, overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(sft.SftConfig, sft_config, overrides, sft.check)


def test_all_problems_of_the_settings_are_told_at_once_with_exit_code_2(refused):
    code, message = refused("weights=null", "chat_template=vicuna", "over_long=cut")
    assert code == 2
    assert "4 problem(s)" in message
    assert all(name in message for name in ("weights, model: neither is given", "weights:", "chat_template:", "over_"))


def test_weights_without_a_tokenizer_are_refused(base, refused, tmp_path):
    folder = shutil.copytree(base, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer.*"))
    code, message = refused(f"weights={folder}")
    assert code == 1
    assert f"{folder} holds no tokenizer; one of tokenizer.json, tokenizer.model," in message


def test_shards_of_another_tokenizer_are_refused(refused, tmp_path):
    foreign = random_shards(tmp_path / "foreign", sha256="0" * 64)
    code, message = refused(f"data={foreign}")
    assert code == 2
    assert f"{foreign}: 1 problem(s)\n  - was made with the tokenizer 000000000000" in message
    assert "make the shards with one of them" in message
