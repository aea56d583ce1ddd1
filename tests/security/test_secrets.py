"""Keys and passwords do not get into run folders, logs or messages."""

import re
from dataclasses import dataclass, field
from typing import Any

import pytest
from omegaconf import MISSING

from configs.loader import ConfigError, load
from data_prep.__main__ import main
from recipes.training.settings import TrainSettings
from tests.support import ROOT, launch

SECRET = "Xq7-very-secret"
TOKENS = ("hf_" + "a1B2" * 8, "sk-" + "a1B2" * 8, "ghp_" + "a1B2" * 9, "AKIA" + "A1B2" * 4, "AIza" + "a1B2c" * 7)


@dataclass
class Toy:
    output_dir: str = MISSING
    note: str | None = None
    wandb: dict[str, Any] | None = None
    sources: list[Any] = field(default_factory=list)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("output_dir: out\n")
    return path


@pytest.mark.parametrize(
    "name",
    [
        "api_key",
        "API-KEY",
        "password",
        "token",
        "client_secret",
        "hf_token",
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "GH_TOKEN",
    ],
)
def test_a_key_named_like_a_secret_is_refused_without_its_value(config, name):
    with pytest.raises(ConfigError, match=re.escape(f"wandb.{name}: is named like a secret")) as error:
        load(Toy, config, [f"wandb.{name}={SECRET}"])
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (f"https://me:{SECRET}@example.org/data", "holds an address with a password"),
        (f"postgresql://:{SECRET}@host/db", "holds an address with a password"),
        ("${oc.env:WANDB_API_KEY}", "takes the value of the environment variable WANDB_API_KEY"),
        ("runs of ${oc.env:MY_PASSWORD,none}", "takes the value of the environment variable MY_PASSWORD"),
        *((token, "holds what looks like the key of a service") for token in TOKENS),
    ],
)
def test_a_value_that_is_a_secret_is_refused_wherever_it_stands(config, monkeypatch, value, reason):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    for place, text in (("note", f"note: '{value}'"), ("sources[1].path", f"sources: [a, {{path: '{value}'}}]")):
        config.write_text(f"output_dir: out\n{text}\n")
        with pytest.raises(ConfigError, match=re.escape(f"{place}: {reason}")) as error:
            load(Toy, config)
        assert SECRET not in str(error.value)
        assert value not in str(error.value)


def test_what_only_looks_alike_is_no_secret(config):
    words = "output_dir: /data/hf_models/sk-korean-news-of-years\nnote: 'https://example.org:8080/a@b ${oc.env:HOME}'\n"
    config.write_text(
        words + "wandb: {project: tokens, api_key_env: WANDB_API_KEY, token_budget: 5, api_key: null, bos_token: a}\n"
    )
    load(Toy, config)


def test_a_run_with_a_secret_on_its_command_line_ends_before_it_writes_anything(tmp_path):
    config, run = tmp_path / "cpt.yaml", tmp_path / "run"
    config.write_text(f"output_dir: {run}\nbase: {ROOT / 'configs/models/llama3_8b.yaml'}\n")
    command = ["python", "-m", "recipes.cpt", "--config", str(config), f"wandb.api_key={SECRET}"]
    ended = launch(*command, check=False)
    assert ended.returncode == 2
    assert "wandb.api_key: is named like a secret (its value is not shown)" in ended.stderr
    assert SECRET not in ended.stderr + ended.stdout
    assert not run.exists()


def test_the_settings_of_a_run_name_no_secret():
    names = {name.lower() for name in TrainSettings.__dataclass_fields__}
    assert not names & {"api_key", "token", "password", "secret"}


def test_a_mirror_with_a_password_is_refused_without_it(tmp_path, capsys):
    arguments = ["--wiki", "kowiki", "--date", "20240520", "--out", str(tmp_path / "out")]
    code = main(["download", *arguments, "--mirror", f"https://me:{SECRET}@example.org"])
    told = "".join(capsys.readouterr())
    assert code != 0
    assert "--mirror holds a user or password (not shown)" in told
    assert SECRET not in told
