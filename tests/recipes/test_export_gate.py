"""What is written is loaded by transformers and PEFT, and compared with what was trained; the card; the Hub."""

import dataclasses
import hashlib
import http.server
import json
import re
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml
from transformers import GenerationConfig

from data_prep.dialogue.chat_template import LLAMA3, ChatTemplate
from data_prep.dialogue.named_templates import ALPACA
from data_prep.tokens.tokenizer import load_tokenizer
from recipes import export
from recipes.training.export import gate as export_gate
from recipes.training.export.tokenizer import ExportError, check_tokenizer
from recipes.training.loop import open_weights
from recipes.training.model import weights
from recipes.training.model.adapter_files import parameter_shapes
from recipes.training.model.adapters import AdapterSettings
from recipes.training.model.decoder import build_model
from tests.support import answering_llama, launch, run_here, tiny_llama, tiny_tokenizer, write_run

HEADER = "---\nlicense: llama3\nbase_model: meta-llama/Meta-Llama-3-8B\nlanguage: [en]\n---\n# Meta's own card\n"
# PEFT asks transformers for a property that it has renamed
RENAMED = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"


def parameters_of(source):
    directory, architecture = open_weights(str(source))
    model = build_model(architecture)
    weights.load(model, directory, architecture)
    return dict(model.named_parameters())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def chatty(root):
    """A run, by its files, of an SFT whose model answers everything and ends its turn."""
    source = answering_llama(root / "chatty", "ab cd!")
    (source / "README.md").write_text(HEADER, encoding="utf-8")
    return write_run(root / "sft", parameters_of(source), weights=str(source), chat_template="llama3", seq_len=128)


@pytest.fixture(scope="module")
def endless(root):
    """The same of a model with random weights."""
    source = tiny_llama(tiny_tokenizer(root / "endless"), seed=3)
    return write_run(root / "endless_run", parameters_of(source), weights=str(source), chat_template="llama3")


@pytest.fixture
def export_here(tmp_path):
    """Exports into `tmp_path/out` in this process; returns the directory and what was printed, or the refusal."""

    def run(run, *overrides, code=0):
        config, folder = tmp_path / "export.yaml", tmp_path / "out"
        config.write_text("dtype: bf16\n")
        result = run_here(export.main, config, f"run={run}", f"output_dir={folder}", *overrides)
        assert result.returncode == code, result
        return (folder, result.stdout) if code == 0 else result.stderr

    return run


def gate_of(folder, tokenizer, template=None):
    return export_gate.Gate(Path(folder), tokenizer, template, [], 16, 1.0, torch.float32, "cpu")


def check(folder, template=None, read=None):
    """Holds the gate on a directory that lies there, with its own weights or others."""
    architecture, own = open_weights(str(folder))[1], parameters_of(folder)
    gate = gate_of(folder, load_tokenizer(folder), template)
    return export_gate.check_export(gate, architecture, read or (lambda name: own[name].detach()))


def test_a_chat_model_passes_and_its_answers_end(chatty, export_here):
    folder, told = export_here(chatty)
    assert "transformers gives the ids of the training" in told
    assert "with the same likeliest token at 100.0%; 4 of 4 answers end with one of [257, 265] within 128" in told
    assert json.loads((folder / "manifest.json").read_text())["gate"] in told
    assert (folder / "chat_template.jinja").read_text(encoding="utf-8") == LLAMA3


def test_answers_that_do_not_end_are_refused_and_shown(endless, export_here, tmp_path):
    before, _ = export_here(endless, "gate_min_ended=0", "gate_max_new_tokens=8")
    manifest = (before / "manifest.json").read_bytes()
    message = export_here(endless, "gate_max_new_tokens=8", "gate_prompts=[물은?]", code=1)
    assert re.search(r"out.tmp: 0 of 1 answers end with one of \[257, 265\] within 8 tokens; 50% must; train", message)
    assert "  '물은?': '" in message
    assert (before / "manifest.json").read_bytes() == manifest
    assert (tmp_path / "out.tmp/model.safetensors").is_file()
    assert not (tmp_path / "out.tmp/manifest.json").exists()


def test_a_model_that_ends_its_turn_otherwise_than_its_template_is_refused(tmp_path, chatty, export_here):
    source = shutil.copytree(chatty.parent / "chatty", tmp_path / "source")
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((source / name).read_text()) | {"eos_token_id": 257}
        (source / name).write_text(json.dumps(settings))
    message = export_here(chatty, f"tokenizer={source}", "chat_template=alpaca", code=1)
    assert "0 of 4 answers end with one of [257]" in message


def test_a_base_model_is_asked_nothing(root, endless, export_here):
    run = shutil.copytree(endless, root / "base_run")
    settings = yaml.safe_load((run / "config.yaml").read_text()) | {"chat_template": None}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert "answers" not in export_here(run)[1]


def test_the_gate_alone_is_left_out(endless, export_here):
    assert "read back bit for bit; no other library was asked" in export_here(endless, "gate=weights")[1]


def test_what_the_gate_needs_is_asked_for_before_any_work(endless, export_here, monkeypatch, tmp_path):
    monkeypatch.setattr(export_gate.importlib.util, "find_spec", lambda name: None)
    for keys, lacking in (([], "transformers"), (["adapter=keep"], "transformers peft")):
        message = export_here(endless, *keys, code=2)
        assert f"gate: transformers needs {lacking}; `pip install {lacking}`, or set gate=weights" in message
    assert not (tmp_path / "out.tmp").exists()


def test_other_weights_are_refused(tmp_path):
    folder = tiny_llama(tiny_tokenizer(tmp_path / "model"), seed=1)
    assert "5.0e-0" in check(folder) or "e-07" in check(folder)
    own = parameters_of(folder)
    moved = {name: tensor.detach().clone() for name, tensor in own.items()}
    query = moved["layers.1.attn.q_proj.weight"]
    query[:16] = query[:16].flip(0)  # the rows of a head in another order
    with pytest.raises(ExportError, match=r"the logits of text 0 differ by .* 0.0001 is the limit in torch"):
        check(folder, read=moved.__getitem__)
    moved = {name: tensor * float("nan") for name, tensor in moved.items()}
    with pytest.raises(ExportError, match=r"differ by nan standard deviations"):
        check(folder, read=moved.__getitem__)


def test_a_config_of_another_model_is_refused(tmp_path):
    folder = tiny_llama(tiny_tokenizer(tmp_path / "model"))
    architecture = dataclasses.replace(open_weights(str(folder))[1], norm_eps=1e-5)
    own = parameters_of(folder)
    with pytest.raises(ExportError, match=r"config.json states .*norm_eps=1e-06.*norm_eps=1e-05.* was trained"):
        export_gate.check_export(gate_of(folder, load_tokenizer(folder)), architecture, own.__getitem__)


def test_a_tokenizer_that_transformers_reads_otherwise_is_refused(tmp_path):
    folder = tiny_llama(tiny_tokenizer(tmp_path / "model"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"additional_special_tokens": ["서울"]}))
    with pytest.raises(ExportError, match=r"transformers' tokenizer gives .* the ids of the training"):
        check(folder)


def test_a_tokenizer_that_transformers_cannot_read_is_refused(tmp_path, endless, export_here):
    source = tmp_path / "ranks"
    source.mkdir()
    shutil.copyfile(endless.parent / "endless/tokenizer.model", source / "tokenizer.model")
    message = export_here(endless, f"tokenizer={source}", code=1)  # it does read ranks, without the special tokens
    assert "out.tmp: transformers' apply_chat_template gives id" in message
    assert "name its template as chat_template=..., and a directory with all special tokens as tokenizer=..." in message
    with pytest.raises(ExportError, match=r"cannot read the tokenizer: .*; tokenizer.json, or sentencepiece"):
        check_tokenizer(tmp_path, load_tokenizer(source), None)


def test_another_chat_template_is_refused(tmp_path):
    folder = tiny_llama(tiny_tokenizer(tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(LLAMA3, encoding="utf-8")
    tokenizer = load_tokenizer(folder)
    assert check(folder, ChatTemplate(tokenizer, LLAMA3))
    with pytest.raises(ExportError, match=r"apply_chat_template gives id \d+, not \d+, at place 1 for .*user"):
        check(folder, ChatTemplate(tokenizer, ALPACA))


@pytest.fixture(scope="module")
def adapted(root):
    """A run, by its files, that trained adapters of random values."""
    source = tiny_llama(tiny_tokenizer(root / "adapted"), seed=6)
    settings = AdapterSettings(rank=4, quantize_base="nf4", modules=["q_proj", "k_proj", "down_proj"])
    _, shapes = parameter_shapes(open_weights(str(source))[1], settings)
    generator = torch.Generator().manual_seed(0)
    learnt = {name: torch.empty(shape).normal_(std=0.3, generator=generator) for name, shape in shapes.items()}
    facts = {"adapter": dataclasses.asdict(settings), "precision": "fp32"}
    return write_run(root / "adapted_run", learnt, weights=str(source), **facts)


@pytest.mark.filterwarnings(RENAMED)
def test_peft_has_the_kept_adapters_over_the_base_as_it_lies_on_disk(adapted, export_here):
    folder, told = export_here(adapted, "adapter=keep")
    assert "PEFT gives the ids of the training, and logits that at" in told
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "library_name: peft" in card
    assert f'AutoPeftModelForCausalLM.from_pretrained("{folder}")' in card
    assert "vllm" not in card


def test_generation_settings_are_transformers_own(chatty, export_here):
    keys = ["generation.temperature=0.6", "generation.top_p=0.9", "generation.repetition_penalty=1.05"]
    folder, _ = export_here(chatty, *keys, "generation.max_new_tokens=512")
    read = GenerationConfig.from_pretrained(folder)
    read.validate(strict=True)
    assert (read.do_sample, read.temperature, read.top_p, read.repetition_penalty) == (True, 0.6, 0.9, 1.05)
    assert (read.bos_token_id, read.eos_token_id, read.max_new_tokens) == (256, [257, 265], 512)
    greedy = json.loads((export_here(chatty)[0] / "generation_config.json").read_text())
    assert greedy == {"bos_token_id": 256, "eos_token_id": [257, 265], "do_sample": False}


def test_the_pad_token_is_the_tokenizers(tmp_path, chatty, export_here):
    source = shutil.copytree(chatty.parent / "chatty", tmp_path / "source")
    settings = json.loads((source / "tokenizer_config.json").read_text()) | {
        "pad_token": "<|reserved_special_token_0|>"
    }
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    folder, _ = export_here(chatty, f"tokenizer={source}")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((folder / name).read_text())["pad_token_id"] == 258


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gate=none", "gate: 'none' is not known; one of transformers, weights"),
        ("gate_min_ended=1.5", "gate_min_ended: 1.5 is no share; 0 to 1 is expected; set it so"),
        ("gate_max_new_tokens=0", "gate_max_new_tokens: 0 is not positive; set it above 0"),
        ("generation.top_p=1.5", "generation.top_p: 1.5 is above 1; it is a share; set it to 1 or less"),
        ("generation.temperature=0", "generation.temperature: 0.0 is not positive; set it above 0"),
        ("reports=[none.json]", "reports: none.json does not exist; give an existing file"),
        ("hub.token=hf_x", "hub.token"),
        ("hub.repo=kotune", "hub.repo: 'kotune' is no name on the Hub; OWNER/NAME is expected; write it so"),
    ],
)
def test_bad_settings_are_refused_by_name(chatty, export_here, monkeypatch, override, message):
    monkeypatch.setenv("HF_TOKEN", "x")
    assert message in export_here(chatty, override, code=2)


def test_the_card_tells_licence_data_and_lineage(tmp_path, chatty, export_here):
    run = shutil.copytree(chatty, tmp_path / "run")
    shards = tmp_path / "tokens"
    shards.mkdir()
    (shards / "manifest.json").write_text(json.dumps({"sources": [{"source": "kowiki"}]}))
    sources = {
        "wiki": {"shards": str(shards), "lang": "ko", "tokens": 9_000},
        "dialogues": {"chat": str(tmp_path / "x.jsonl"), "tokens": 1_000},
    }
    (run / "mixture.json").write_text(json.dumps({"sources": sources}))
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"rows": [{"model": "sft", "bits_per_byte_ko": 2.159}]}))
    folder, told = export_here(run, f"reports=[{report}]", "name=ko-chat")
    card = (folder / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    assert (header["license"], header["base_model"]) == ("llama3", "meta-llama/Meta-Llama-3-8B")
    assert (header["language"], header["library_name"], header["pipeline_tag"]) == (
        ["ko", "en"],
        "transformers",
        "text-generation",
    )
    assert "# ko-chat\n\nBuilt with Meta Llama 3\n" in card
    assert "| Instruction tuning | wiki | ko | 9,000 | kowiki | CC BY-SA 4.0 (text of Wikipedia) |" in card
    assert "| Instruction tuning | dialogues | – | 1,000 | – | – |" in card
    assert "2.159" in card
    assert "Meta Llama 3 is licensed under" in (folder / "NOTICE").read_text(encoding="utf-8")
    assert f"{folder}/README.md: the licence of the data dialogues is not known; set data_licenses.dialogues=" in told
    assert "README.md: the name 'ko-chat' does not begin with 'Llama 3'" in told
    second = yaml.safe_load((run / "config.yaml").read_text()) | {
        "weights": str(shutil.copytree(folder, tmp_path / "one"))
    }
    (run / "config.yaml").write_text(yaml.safe_dump(second))
    told = export_here(run, "data_licenses.dialogues=CC0 1.0", "name=Llama-3-ko")[1]
    stages = json.loads((folder / "manifest.json").read_text())["stages"]
    assert [stage["weights"] for stage in stages] == [str(chatty.parent / "chatty"), str(tmp_path / "one")]
    assert "| Instruction tuning | dialogues | – | 1,000 | – | CC0 1.0 |" in (folder / "README.md").read_text()
    assert "does not begin" not in told


class Hub(http.server.BaseHTTPRequestHandler):
    """The requests of an upload, as the Hub answers them; keeps files and what was asked."""

    def log_message(self, *args):
        pass

    def answer(self, value, code=200):
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        hub, body = self.server, self.body()
        hub.asked.append((self.path, self.headers.get("Authorization")))
        if self.path == "/api/repos/create":
            hub.created.append(json.loads(body))
            return self.answer({"url": f"{hub.url}/{hub.repo}", "name": hub.repo})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            kinds = {True: "lfs", False: "regular"}
            known = [hub.oids.get(one["path"]) for one in files]
            rows = [
                {"path": one["path"], "uploadMode": kinds[one["path"].endswith(".safetensors")], "shouldIgnore": False}
                | ({"oid": oid} if oid else {})
                for one, oid in zip(files, known, strict=True)
            ]
            return self.answer({"files": rows})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {"oid": one["oid"], "size": one["size"]}
                | ({} if one["oid"] in hub.blobs else {"actions": {"upload": {"href": f"{hub.url}/blob/{one['oid']}"}}})
                for one in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] in ("file", "lfsFile"):
                    hub.files[line["value"]["path"]] = line["value"]
            return self.answer(
                {"success": True, "commitOid": "c0ffee", "commitUrl": f"{hub.url}/{hub.repo}/commit/c0ffee"}
            )
        return self.answer({"error": f"unexpected {self.path}"}, 404)

    def do_PUT(self):
        self.server.blobs[self.path.rpartition("/")[2]] = self.body()
        self.answer({})

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        self.answer({"id": self.server.repo, "sha": "c0ffee", "siblings": [], "tags": []})


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url, server.repo = f"http://127.0.0.1:{server.server_port}", "someone/Llama-3-ko"
    server.asked, server.created, server.files, server.blobs, server.oids = [], [], {}, {}, {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_the_export_is_pushed_and_pushed_again_without_what_is_there(tmp_path, chatty, hub):
    (tmp_path / "export.yaml").write_text("dtype: bf16\n")
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "recipes.export", "--config", str(tmp_path / "export.yaml"), f"run={chatty}"]
    command += [f"output_dir={folder}", f"hub.repo={hub.repo}"]
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    first = launch(*command, env=settings)
    assert f"{folder}: pushed to {hub.url}/{hub.repo}/commit/c0ffee" in first.stdout
    assert hub.created[0].get("visibility") == "private" or hub.created[0].get("private")
    blob = (folder / "model.safetensors").read_bytes()
    assert hub.blobs == {hashlib.sha256(blob).hexdigest(): blob}
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert hub.files.keys() == names
    assert {token for path, token in hub.asked if path.startswith(("/api/repos", "/api/models"))} == {
        "Bearer hf_secret"
    }, hub.asked
    assert "hf_secret" not in first.stdout + first.stderr + "".join(p.read_text() for p in folder.glob("*.json"))
    again = launch(*command, "hub.only=true", env=settings)
    assert "pushed to" in again.stdout
    assert "read back" not in again.stdout
    assert len(hub.blobs) == 1
    (folder / "config.json").write_text("{}")
    changed = launch(*command, "hub.only=true", env=settings, check=False)
    assert changed.returncode == 1
    assert "config.json is not as manifest.json says; an unchanged export is expected; export again" in changed.stderr


def test_a_push_that_cannot_work_is_refused_before_any_work(tmp_path, chatty, export_here, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "x")
    assert "hub.only: " in export_here(chatty, "hub.repo=a/b", "hub.only=true", code=2)
    keys = ["hub.repo=me/ko-chat", "hub.private=false", "license=llama3"]
    assert "hub.repo: the name 'ko-chat' does not begin with 'Llama 3'" in export_here(chatty, *keys, code=2)
    assert not (tmp_path / "out.tmp").exists()
