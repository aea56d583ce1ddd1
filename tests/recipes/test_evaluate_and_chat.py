"""Scores and answers of models whose answers are known, from the documented commands; and their errors."""

import json
import re
import shutil

import pytest
import yaml

from configs.loader import ConfigError, load
from data_prep.document import Document, as_row, write_jsonl
from recipes import chat, evaluate, export
from recipes.training.loop import open_weights
from recipes.training.model import weights
from recipes.training.model.decoder import build_model
from tests.support import TEXTS, answering_llama, run_here, tune_run, write_run

ANSWER = "부산."
PROMPTS = [("p-ko", "ko", "인사해 주세요."), ("p-en", "en", "Say hello.")]
QUESTIONS = [
    ("q-ko", "ko", "항구 도시는 어디인가요?", ["부산", "부산입니다"]),
    ("q-en", "en", "Which city has a harbour?", ["Busan"]),
]


@pytest.fixture(scope="module")
def korean(tmp_path_factory, base):
    """The export of a model that answers every prompt with `ANSWER` and ends its turn."""
    root = tmp_path_factory.mktemp("korean")
    source = answering_llama(root / "source", ANSWER)
    directory, architecture = open_weights(str(source))
    model = build_model(architecture)
    weights.load(model, directory, architecture)
    run = write_run(root / "run", dict(model.named_parameters()), weights=str(source))
    (root / "export.yaml").write_text("dtype: bf16\nchat_template: llama3\n")
    result = run_here(export.main, root / "export.yaml", f"run={run}", f"output_dir={root / 'model'}")
    assert result.returncode == 0, result
    return root / "model"


@pytest.fixture(scope="module")
def config(tmp_path_factory, korean, base):
    """An evaluation of two models, the base last in the alphabet's order but not in the table's."""
    folder = tmp_path_factory.mktemp("evaluate")
    for lang, texts in {"en": TEXTS[::2], "ko": TEXTS[1::2]}.items():
        rows = [as_row(Document(id=str(n), text=text, lang=lang)) for n, text in enumerate(texts)]
        write_jsonl(folder / lang / "documents-00000.jsonl.zst", rows)

    def asked(text):
        return [{"role": "user", "content": text}]

    write_jsonl(folder / "prompts.jsonl", [{"id": i, "lang": lang, "messages": asked(t)} for i, lang, t in PROMPTS])
    questions = [{"id": i, "lang": lang, "messages": asked(t), "answers": a} for i, lang, t, a in QUESTIONS]
    write_jsonl(folder / "questions.jsonl", questions)
    settings = {
        "output_dir": str(folder / "out"),
        "models": {"raw base": str(base), "korean": str(korean)},
        "documents": {"ko": str(folder / "ko"), "en": str(folder / "en")},
        "prompts": str(folder / "prompts.jsonl"),
        "questions": str(folder / "questions.jsonl"),
        "seq_len": 64,
        "max_new_tokens": 16,
        "batch": 3,
        "device": "cpu",
    }
    path = folder / "evaluate.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def evaluated(config):
    """Standard output and report of the documented command."""
    result = tune_run(1, "evaluate", config)
    return result.stdout, json.loads((config.parent / "out/report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def chat_config(tmp_path_factory):
    path = tmp_path_factory.mktemp("chat") / "chat.yaml"
    path.write_text("max_new_tokens: 16\ndevice: cpu\n")
    return path


def evaluate_here(config, **changes):
    """Evaluates in this process with changed settings."""
    path = config.parent / "changed.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | changes, sort_keys=False))
    return run_here(evaluate.main, path)


def test_the_report_has_a_row_a_model_in_their_order_and_its_table_is_printed(evaluated):
    printed, report = evaluated
    assert [row["model"] for row in report["rows"]] == ["raw base", "korean"]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if "|" in line]
    assert [line[0] for line in lines if not line[0].startswith("-")] == ["model", "raw base", "korean"]
    assert lines[-1][-1] == "100 %"
    assert report["settings"]["decoding"] == "greedy"
    assert report["settings"]["config"]["batch"] == 3
    assert {"commit", "torch"} <= report["settings"]["versions"].keys()


def test_the_figures_are_those_of_the_known_answers(evaluated):
    base, korean = evaluated[1]["rows"]
    assert list(base) == list(korean)
    shares = {name: value for name, value in korean.items() if name != "model" and not name.startswith("bits")}
    assert shares == {
        "chat_form_en": 1.0,
        "chat_form_ko": 1.0,
        "answered_in_korean": 1.0,
        "exact_match": 0.5,
        "exact_match_en": 0.0,
        "exact_match_ko": 1.0,
    }
    assert all(0 <= value <= 1 for name, value in base.items() if name in shares)
    assert base["exact_match"] == 0
    for row in (base, korean):
        assert all(8 < row[f"bits_per_byte_{lang}"] < 12 for lang in ("ko", "en"))  # 9 bits are a blind guess


def test_every_prompt_stands_with_the_answers_of_all_models(evaluated):
    generations = evaluated[1]["generations"]
    assert [(row["prompt"], row["lang"]) for row in generations] == [(text, lang) for _, lang, text in PROMPTS]
    assert [list(row["answers"]) for row in generations] == [["raw base", "korean"]] * 2
    assert [row["answers"]["korean"] for row in generations] == [ANSWER] * 2
    assert all(isinstance(row["answers"]["raw base"], str) for row in generations)


def test_what_is_not_asked_for_is_not_in_the_table(config, tmp_path, korean):
    changes = {"models": {"one": str(korean)}, "documents": {}, "questions": None, "output_dir": str(tmp_path)}
    assert evaluate_here(config, **changes).returncode == 0
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["rows"] == [
        {"model": "one", "chat_form_en": 1.0, "chat_form_ko": 1.0, "answered_in_korean": 1.0, "exact_match": None}
    ]


def refused(config, **changes):
    """Returns the exit code and standard error of an evaluation with changed settings."""
    result = evaluate_here(config, **changes)
    assert "Traceback" not in result.stderr
    return result.returncode, result.stderr


def test_models_that_cannot_be_read_are_refused_before_any_is_scored(config, korean, tmp_path):
    models = {"korean": str(korean), "gone": "/does/not/exist"}
    code, message = refused(config, models=models)
    assert code == 2
    assert "models.gone: /does/not/exist does not exist; give an existing path as models.gone=..." in message
    for models in ({"korean": str(korean), "v3.1": "/gone"}, {"korean": str(korean), "empty": str(tmp_path)}):
        code, message = refused(config, output_dir=str(tmp_path / "out"), models=models)
        assert code == 2
        assert "config.json: 1 problem(s)\n  - does not exist; give a Hugging Face model directory" in message
        assert "korean" not in message
    assert not (tmp_path / "out").exists()


def test_settings_with_nothing_to_score_are_refused(config):
    message = "models: name at least one, and documents, prompts or questions to score it on"
    assert message in refused(config, models={})[1]
    assert message in refused(config, documents={}, prompts=None, questions=None)[1]
    assert "documents.fr: /gone does not exist" in refused(config, documents={"fr": "/gone"})[1]
    assert "prompts: /gone does not exist" in refused(config, prompts="/gone")[1]
    assert "batch: 0 is not positive; set it above 0" in refused(config, batch=0)[1]


def test_texts_longer_than_a_model_reads_are_refused_naming_it(config):
    code, message = refused(config, seq_len=512, max_new_tokens=250)
    assert code == 2
    assert "models: 4 problem(s)" in message
    assert "seq_len: 512 tokens, raw base reads 256; take fewer" in message
    assert re.search(r"prompt and answer: \d+ tokens, korean reads 256; take fewer", message)


def test_a_row_without_a_key_is_named(config, tmp_path):
    path = tmp_path / "questions.jsonl"
    lines = (config.parent / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    path.write_text(lines[0] + '\n{"id": "x", "messages": []}\n', encoding="utf-8")
    code, message = refused(config, questions=str(path))
    assert code == 1
    assert f"{path} row 2 lacks lang, answers; lang, messages, answers are needed; add it" in message


def test_chat_answers_one_prompt_and_keeps_it(chat_config, korean, tmp_path):
    question = "Question: 항구 도시는? {a, b}"
    result = run_here(chat.main, chat_config, f"model={korean}", f"prompt={question}", f"output_dir={tmp_path}")
    assert (result.returncode, result.stdout) == (0, f"{ANSWER}\n")
    assert (tmp_path / "answer.txt").read_text(encoding="utf-8") == f"{question}\n{ANSWER}\n"


def test_the_documented_command_talks_until_the_input_ends(chat_config, korean):
    result = tune_run(1, "chat", chat_config, f"model={korean}", stdin="안녕?\nWhere?\n")
    assert result.stdout.endswith(f"\n> {ANSWER}\n> {ANSWER}\n> \n")
    assert "Traceback" not in result.stderr


def test_an_empty_line_ends_the_conversation(chat_config, korean, tmp_path):
    overrides = (f"model={korean}", "system=짧게.", f"output_dir={tmp_path / 'none'}")
    result = run_here(chat.main, chat_config, *overrides, stdin="안녕?\nWhere?\n\nMore?\n")
    assert (result.returncode, result.stdout) == (0, f"> {ANSWER}\n> {ANSWER}\n> ")
    assert not (tmp_path / "none").exists()


def test_a_conversation_holds_all_its_turns_until_they_fill_what_the_model_reads(chat_config, korean):
    turns = ["가" * 35, "나" * 35]
    result = run_here(chat.main, chat_config, f"model={korean}", "system=짧게.", stdin="\n".join(turns))
    messages = [{"role": "system", "content": "짧게."}, {"role": "user", "content": turns[0]}]
    messages += [{"role": "assistant", "content": ANSWER}, {"role": "user", "content": turns[1]}]
    length = len(evaluate.prompt_template(korean).prompt(messages))
    assert (result.returncode, result.stdout) == (2, f"> {ANSWER}\n> ")
    assert f"has {length} tokens; 256 are the limit; shorten it" in result.stderr


def test_a_turn_without_an_answer_does_not_end_the_conversation(chat_config, tmp_path):
    silent = answering_llama(tmp_path / "silent", "")
    result = run_here(chat.main, chat_config, f"model={silent}", stdin="안녕?\nWhere?\n")
    assert (result.returncode, result.stdout) == (0, "> \n(no answer)\n> \n(no answer)\n> \n")


def test_sampling_follows_the_seed(chat_config, base, tmp_path):
    model = shutil.copytree(base, tmp_path / "model")
    (model / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")

    def answer(seed):
        settings = (f"model={model}", "prompt=Hi", "temperature=1.5", f"seed={seed}")
        return run_here(chat.main, chat_config, *settings).stdout

    assert answer(1) == answer(1) != answer(2)


def test_a_model_without_a_template_is_refused(chat_config, base):
    result = run_here(chat.main, chat_config, f"model={base}", "prompt=Hi")
    assert result.returncode == 1
    assert f"error: {base} has no chat template; chat_template.jinja or a chat_template in" in result.stderr


def test_a_prompt_longer_than_the_model_reads_is_refused(chat_config, korean):
    result = run_here(chat.main, chat_config, f"model={korean}", f"prompt={'a' * 300}")
    assert result.returncode == 2
    assert re.search(r"prompt: 1 problem\(s\)\n  - has 3\d\d tokens; 256 are the limit; shorten it", result.stderr)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=/does/not/exist", "model: /does/not/exist does not exist; give an existing path as model=..."),
        ("temperature=-1", "temperature: -1.0 is below 0; use 0 or more"),
        ("max_new_tokens=0", "max_new_tokens: 0 is not positive; set it above 0"),
        ("promt=Hi", "promt (command line): unknown key; did you mean 'prompt'?"),
    ],
)
def test_bad_settings_of_a_chat_are_refused_by_name(chat_config, korean, override, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(chat.ChatConfig, chat_config, [f"model={korean}", override], chat.check)


def test_a_prompt_with_nothing_in_it_is_refused(chat_config, korean):
    result = run_here(chat.main, chat_config, f"model={korean}", "prompt= ")
    assert result.returncode == 1
    assert "message 0 has the content ' '; text is expected" in result.stderr
