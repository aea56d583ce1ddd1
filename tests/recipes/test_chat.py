"""recipes/chat.py from its documented commands: one answer, a conversation, models side by side; and their errors."""

import json
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest

from configs.loader import ConfigError, load
from data_prep.dialogue.chat_template import ChatTemplate
from data_prep.tokens.tokenizer import load_tokenizer
from recipes import chat
from tests.support import ROOT, answering_llama, launch, run_here, tiny_llama, tiny_tokenizer

ANSWER, OTHER = "부산.", "It|[s]<b>"


@pytest.fixture(scope="module")
def korean(tmp_path_factory):
    """A model that answers every prompt with `ANSWER` and ends its turn."""
    return answering_llama(tmp_path_factory.mktemp("korean") / "busan", ANSWER)


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    return answering_llama(tmp_path_factory.mktemp("english") / "model", OTHER)


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A model that says its prompt's like for ever."""
    folder = tiny_tokenizer(tmp_path_factory.mktemp("endless") / "model")
    (folder / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
    return tiny_llama(folder, max_position_embeddings=20_000, eos_token_id=None)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("chat") / "chat.yaml"
    path.write_text("max_new_tokens: 16\ndevice: cpu\n")
    return path


def talk(config, model, typed, *overrides):
    """Returns what a conversation prints, without its first line."""
    result = run_here(chat.main, config, f"model={model}", *overrides, stdin=typed)
    assert result.returncode == 0, result.stderr
    first, _, rest = result.stdout.partition("\n")
    assert first.endswith("/help lists the commands.")
    return rest


def test_one_prompt_is_answered_and_kept(config, korean, tmp_path):
    question = "Question: 항구 도시는? {a, b}"
    result = run_here(chat.main, config, f"model={korean}", f"prompt={question}", f"output_dir={tmp_path}")
    assert (result.returncode, result.stdout) == (0, f"{ANSWER}\n")
    assert (tmp_path / "answer.txt").read_text(encoding="utf-8") == f"{question}\n{ANSWER}\n"


def test_the_documented_command_talks_until_the_input_ends(config, korean):
    command = [sys.executable, "-m", "recipes.chat", "--config", str(config), f"model={korean}"]
    result = launch(*command, stdin="안녕?\nWhere?\n")
    assert result.stdout == f"busan. /help lists the commands.\n> {ANSWER}\n> {ANSWER}\n> \n"
    assert "Traceback" not in result.stderr


def test_an_empty_line_ends_the_conversation(config, korean, tmp_path):
    printed = talk(config, korean, "안녕?\nWhere?\n\nMore?\n", "system=짧게.", f"output_dir={tmp_path / 'none'}")
    assert printed == f"> {ANSWER}\n> {ANSWER}\n> "
    assert not (tmp_path / "none").exists()


def test_commands_change_what_is_asked(config, korean, monkeypatch):
    asked = []
    own = ChatTemplate.prompt
    monkeypatch.setattr(ChatTemplate, "prompt", lambda self, messages: asked.append(messages) or own(self, messages))
    printed = talk(config, korean, '하나\n둘\n/undo\n/system 짧게.\n"""\n세\n넷\n"""\n/reset\n/system\n /a\n/nix\n')
    roles = {"s": "system", "u": "user", "a": "assistant"}
    expected = [
        ["u:하나"],
        ["u:하나", f"a:{ANSWER}", "u:둘"],
        ["s:짧게.", "u:하나", f"a:{ANSWER}", "u:세\n넷"],
        ["u:/a"],
    ]
    found = [[f"{m['role'][0]}:{m['content']}" for m in messages] for messages in asked[::2]]  # each is rendered twice
    assert found == expected
    assert all(roles[text[0]] for messages in found for text in messages)
    assert "(1 question(s) left)" in printed
    assert "/nix is no command; see /help" in printed


def test_the_oldest_turns_go_when_the_conversation_is_full(config, korean):
    typed = "".join(f"{letter * 30}\n" for letter in "가나다")
    printed = talk(config, korean, typed, "system=짧게.")
    note = "(the oldest {} question(s) and answer(s) were dropped: 256 tokens are read)"
    assert printed == f"> {ANSWER}\n> {note.format(1)}\n{ANSWER}\n> {note.format(1)}\n{ANSWER}\n> \n"


def test_a_question_that_cannot_be_asked_is_taken_back(config, korean):
    printed = talk(config, korean, f"{'a' * 300}\n<|eot_id|>\n안녕?\n")
    assert re.search(r"\(not asked: the prompt has 3\d\d tokens; 256 are the limit; shorten it\)", printed)
    assert "(not asked: message 0 holds <|eot_id|>; special tokens are the template's own" in printed
    assert printed.endswith(f"> {ANSWER}\n> \n")


def test_a_turn_without_an_answer_does_not_end_the_conversation(config, tmp_path):
    silent = answering_llama(tmp_path / "silent", "")
    assert talk(config, silent, "안녕?\nWhere?\n") == "> \n(no answer)\n> \n(no answer)\n> \n"


@pytest.mark.slow
def test_ctrl_c_ends_the_answer_and_not_the_conversation(config, endless):
    command = [sys.executable, "-u", "-m", "recipes.chat", "--config", str(config), f"model={endless}"]
    settings = ["max_new_tokens=15000", "max_context_tokens=16000"]
    with subprocess.Popen(
        [*command, *settings], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        process.stdin.write(b"river\n")
        process.stdin.flush()
        process.stdout.readline()
        assert process.stdout.read(20)  # the answer has begun
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(b"\n", timeout=120)
    assert process.returncode == 0
    assert out.endswith(b"\n> ")
    assert b"cut off" not in out


def test_sampling_follows_the_model_the_keys_and_the_seed(config, endless, tmp_path):
    model = shutil.copytree(endless, tmp_path / "model")

    def answer(*settings):
        return run_here(chat.main, config, f"model={model}", "prompt=Hi", *settings).stdout

    greedy = answer()
    (model / "generation_config.json").write_text('{"do_sample": true, "temperature": 1.5, "top_k": 0}')
    assert answer("seed=1") == answer("seed=1") != greedy
    assert answer("top_k=1", "seed=2") == greedy
    assert answer("temperature=0", "repetition_penalty=5") != greedy


def test_a_stop_string_and_an_end_token_of_the_generation_config_end_an_answer(config, korean, tmp_path):
    stopped = run_here(chat.main, config, f"model={korean}", "prompt=Hi", "stop=['산.']")
    assert stopped.stdout == "부\n"
    model = shutil.copytree(korean, tmp_path / "model")
    first = load_tokenizer(model).encode("\n" + ANSWER)[-1]
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [first]}))
    assert run_here(chat.main, config, f"model={model}", "prompt=Hi").stdout == f"{ANSWER[:-1]}\n"


@pytest.mark.slow
@pytest.mark.parametrize("settings", [["dtype=bf16"], ["compile=true"]], ids=str)
def test_bf16_and_compiled_layers_give_the_answer(config, korean, settings):
    command = [sys.executable, "-m", "recipes.chat", "--config", str(config), f"model={korean}", "prompt=Hi"]
    result = launch(*command, *settings)
    assert result.stdout == f"{ANSWER}\n"
    assert "Mismatch dtype" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_endpoint_answers_until_it_is_asked_to_end(config, korean, number):
    with serving(config, korean) as (url, process):
        said = httpx.post(f"{url}/chat/completions", json={"messages": [{"role": "user", "content": "안녕?"}]}).json()
        assert said["choices"][0]["message"]["content"] == ANSWER
        process.send_signal(number)
        assert process.wait(60) == 0


@pytest.mark.slow
def test_the_endpoint_scores_texts_for_the_harness_as_its_own_models_do(config, base):
    pytest.importorskip("tenacity", reason="lm-eval's extra `api` is not installed")
    with serving(config, base) as (url, _):
        scores = [harness(base, kind, url) for kind in ("hf", "endpoint")]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 12


@contextmanager
def serving(config, model):
    """Yields the address of the documented command's endpoint, and its process."""
    command = [sys.executable, "-m", "recipes.chat", "--config", str(config), f"model={model}", "port=0", "--serve"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            found = re.fullmatch(rf"serving {model.name} at (http://127\.0\.0\.1:\d+/v1)\n", line)
            assert found, line + process.stderr.read()
            yield found[1], process
        finally:
            process.kill()


def harness(model, kind, url):
    """Returns what lm-evaluation-harness finds for each text: log probability and whether it is the likeliest."""
    code = """
import json, sys
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
kind, folder, url = sys.argv[1:]
if kind == "hf":
    lm = get_model("hf")(pretrained=folder, dtype="float32", device="cpu", batch_size=3)
else:
    lm = get_model("local-completions")(model="model", base_url=url + "/completions", tokenizer=folder, batch_size=3,
                                         add_bos_token=True)  # as it does by itself with kind hf
texts = [("A river is", " a stream"), ("서울은", " 수도이다."), ("The Han River flows", " through it.")] * 4
found = lm.loglikelihood([Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(texts)])
print("found:", json.dumps([[round(value, 3), greedy] for value, greedy in found]))
"""
    result = launch(sys.executable, "-c", code, kind, str(model), url)
    return json.loads(result.stdout.rpartition("found:")[2])


def test_models_stand_side_by_side_in_markdown_that_their_answers_cannot_break(config, korean, english, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    conversation = [{"role": "user", "content": "첫째"}, {"role": "assistant", "content": "a\n\n  b"}]
    conversation.append({"role": "user", "content": "둘째"})
    rows = [{"prompt": "Which | city?"}, {"messages": conversation}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (english / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.01, "top_p": 0.5}')
    models = f"models={{부산 모델: {korean}, english: {english}}}"
    result = run_here(chat.main, config, models, f"prompts={prompts}", f"output_dir={tmp_path}", "max_new_tokens=8")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{tmp_path / 'comparison.md'}\n"
    found = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert [list(row["answers"]) for row in found["rows"]] == [["부산 모델", "english"]] * 2
    assert found["rows"][0]["answers"]["english"] | {"seconds": 0, "sampling": 0} == {
        "text": OTHER[:8], "tokens": 8, "seconds": 0, "reason": "length", "sampling": 0,
    }  # fmt: skip
    shown = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "## 1. Which \\| city?\n\n| model | answer | tokens | seconds | |\n" in shown
    assert re.search(r"^\| 부산 모델 \| 부산\. \| \d+ \| \d+\.\d \| ended \|$", shown, re.MULTILINE)
    assert re.search(r"^\| english \| It\\\|\\\[s\\\]&lt;b \| 8 \| \d+\.\d \| cut off \|$", shown, re.MULTILINE)
    assert "\nDecoding: 부산 모델 greedy; english temperature 0.01, top_k 50, top_p 0.5. *Cut off*" in shown
    assert "> **assistant**: a<br><br>&nbsp;&nbsp;b\n" in shown


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["prompts=['a', '']", "models={}"], "one of both is expected; set model=DIRECTORY"),
        (["prompts=[]"], r"prompts: \[\] holds none; one a line is expected"),
        (["prompts=[{a: 1}]"], "prompts: number 1 is .* a text, or an object with prompt or messages, is expected"),
        (["prompts=/gone.txt"], "prompts: /gone.txt does not exist"),
        (["prompts=['{}']".format("a" * 300)], r"prompt 1 has 3\d\d tokens; korean reads 256 with the answer"),
        (["prompts=[a]", "models.bare={bare}"], "bare: .* has no chat template"),
        (["prompts=[{messages: [{role: user}]}]"], "prompt 1, korean: message 0 has the content None"),
        ([], "prompts: no value; models are compared on some"),
        (["prompts=[a]", "serve=true"], "prompts: they are answered into output_dir; set that, and neither prompt nor"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_a_model_is_loaded(
    config, korean, base, tmp_path, monkeypatch, settings, message
):
    monkeypatch.setattr(chat, "open_talker", lambda *_: pytest.fail("a model was loaded"))
    settings = [one.replace("{bare}", str(base)) for one in settings]
    common = [f"output_dir={tmp_path}"] + ([] if "models={}" in settings else [f"models.korean={korean}"])
    result = run_here(chat.main, config, *common, *settings)
    assert result.returncode in (1, 2)
    assert re.search(message, result.stderr), result.stderr


def test_a_model_without_a_template_is_refused(config, base):
    result = run_here(chat.main, config, f"model={base}", "prompt=Hi")
    assert result.returncode == 1
    assert f"error: {base} has no chat template; chat_template.jinja or a chat_template in" in result.stderr


def test_a_prompt_longer_than_the_model_reads_or_empty_is_refused(config, korean):
    result = run_here(chat.main, config, f"model={korean}", f"prompt={'a' * 300}")
    assert result.returncode == 1
    assert re.search(r"the prompt has 3\d\d tokens; 256 are the limit of prompt and answer; shorten", result.stderr)
    empty = run_here(chat.main, config, f"model={korean}", "prompt= ")
    assert "message 0 has the content ' '; text is expected" in empty.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=/does/not/exist", "model: /does/not/exist does not exist; give an existing path as model=..."),
        ("temperature=-1", "temperature: -1.0 is out of range; use 0 or more"),
        ("top_p=1.5", "top_p: 1.5 is out of range; use above 0, at most 1"),
        ("max_new_tokens=0", "max_new_tokens: 0 is not positive; set it above 0"),
        ("dtype=fp16", "dtype: 'fp16' is not known; one of auto, fp32, bf16"),
        ("promt=Hi", "promt (command line): unknown key; did you mean 'prompt'?"),
        (
            "host=0.0.0.0",
            "host: 0.0.0.0 is open to other machines; a key is expected then; export one as KOTUNE_API_KEY",
        ),
        ("port=70000", "port: 70000 is none; 0 to 65535 is expected; change it"),
    ],
)
def test_bad_settings_are_refused_by_name(config, korean, monkeypatch, override, message):
    monkeypatch.delenv("KOTUNE_API_KEY", raising=False)
    serve = ["serve=true"] if override.startswith(("host", "port")) else []
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(chat.ChatConfig, config, [f"model={korean}", override, *serve], chat.check)
