"""A published pipeline as it stands in configs/pipelines/, run with its sizes scaled down.

    with served_dumps(tmp_path / "mirror", "20240520") as mirror:
        sizes = {"pipelines/llama3_llams_8b.yaml": {"vars.dialogues": 12}}
        pipeline = scale("llama3_llams_8b", tmp_path / "work", sizes, mirror=mirror)
        write_checkpoints(pipeline.folder)
        pipeline.run()

The work folder holds a copy of the code, and one of configs/ in which numbers and addresses differ, nothing else:
`scale` compares them with the published files.
"""

import contextlib
import functools
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from configs.loader import load
from data_prep import pipeline
from data_prep.sample.build import build
from data_prep.stages import BASE_IN_CONFIG
from tests.support import ROOT, answering_llama, tiny_llama, tiny_tokenizer

SIZES: dict[str, object] = {  # wherever a file states the key
    "vocab_size": 512, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 64, "intermediate_dim": 160,
    "steps": 4, "warmup_steps": 1, "save_every_steps": 2, "seq_len": 2048,
    "global_batch_tokens": 8192, "micro_batch": 1, "loss_chunk": 256, "max_new_tokens": 12, "batch": 16,
    "gate_min_ended": 0,
}  # fmt: skip
META = ("checkpoints/Meta-Llama-3-8B-Instruct", "checkpoints/Meta-Llama-3-8B")
ANSWER = "Seoul."
"""What the small instruct model answers to everything; its end of turn follows."""


@dataclass(frozen=True)
class Scaled:
    """A pipeline in its work folder."""

    name: str
    folder: Path

    @property
    def output(self) -> Path:
        """The pipeline's output_dir."""
        return (
            self.folder / load(pipeline.PipelineConfig, self.folder / f"configs/pipelines/{self.name}.yaml").output_dir
        )

    def run(self, *overrides: str, **environment: str) -> str:
        """Runs the pipeline by its documented command, checks that every stage ended well, and returns its output."""
        command = ["python", "-m", "recipes.pipeline", "--config", f"configs/pipelines/{self.name}.yaml", *overrides]
        result = self.launch(*command, **environment)
        assert result.returncode == 0, result.stdout[-6000:] + result.stderr
        for stage in stages_of(self.name):
            stamp = json.loads((self.output / ".stages" / f"{stage}.json").read_text(encoding="utf-8"))
            assert stamp["state"] == "done", stage
        return result.stdout

    def launch(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in the work folder as a user does in the checkout."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        settings = {**os.environ, "PATH": path, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run(command, cwd=self.folder, env=settings, capture_output=True, text=True, timeout=1500)


def stages_of(name: str) -> list[str]:
    """Returns the names of the published pipeline's stages."""
    return [stage.name for stage in pipeline.plan(load(pipeline.PipelineConfig, published(name)))]


def published(name: str) -> Path:
    """Returns the pipeline's file."""
    return ROOT / "configs/pipelines" / f"{name}.yaml"


def scale(
    name: str, folder: Path, changes: Mapping[str, Mapping[str, object]] | None = None, *, mirror: str | None = None
) -> Scaled:
    """Makes a work folder for a pipeline, with its sizes scaled down.

    Args:
        name: of configs/pipelines/NAME.yaml.
        folder: to make.
        changes: file below configs/ -> dotted key -> number or address, over `SIZES`; the key must stand in the file.
        mirror: address that `data_prep download` is given instead of the known mirrors.

    Raises:
        AssertionError: the files differ from the published ones in more than numbers and addresses.
    """
    shutil.copytree(ROOT / "configs", folder / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("recipes", "data_prep", "slurm"):
        shutil.copytree(ROOT / part, folder / part)
    changes = dict(changes or {})
    for file in files_of(name):
        content = yaml.safe_load((ROOT / "configs" / file).read_text(encoding="utf-8"))
        before = skeleton(content)
        content = resized(content)
        for key, value in changes.pop(file, {}).items():
            put(content, key.split("."), value)
        for stage in content.get("stages", []) if file.startswith("pipelines/") else []:
            stage["command"] = small_command(stage["command"], mirror)
        assert skeleton(content) == before, f"{file} differs in more than its sizes"
        (folder / "configs" / file).write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    assert not changes, f"{name} reads none of {', '.join(changes)}"
    return Scaled(name, folder)


def files_of(name: str) -> list[str]:
    """Returns the files below configs/ that a pipeline reads: its own, its stages', and what these name."""
    planned = pipeline.plan(load(pipeline.PipelineConfig, published(name)))  # `vars` may be part of a path
    waiting, found = [published(name), *(ROOT / stage.config for stage in planned if stage.config)], []
    while waiting:
        file = waiting.pop()
        if (relative := str(file.relative_to(ROOT / "configs"))) in found:
            continue
        found.append(relative)
        text = file.read_text(encoding="utf-8")
        waiting += [ROOT / path for path in re.findall(r"configs/[\w/.-]+\.yaml", re.sub(r"(?m)#.*$", "", text))]
        if base := BASE_IN_CONFIG.search(text):
            waiting.append((file.parent / base[1]).resolve())
    return found


def resized(node: Any) -> Any:
    """Returns the content with the numbers of `SIZES`, and at most two ranks and one node."""
    if isinstance(node, dict):
        return {key: SIZES[key] if is_number(value) and key in SIZES else resized(value) for key, value in node.items()}
    return [resized(value) for value in node] if isinstance(node, list) else node


def small_command(command: str, mirror: str | None) -> str:
    """Returns a stage's command for two ranks, and with an address for its download."""
    command = re.sub(r"(--nproc_per_node) ([2-9]|\d\d+)\b", r"\1 2", command)
    return f"{command} --mirror {mirror}" if mirror and "data_prep download " in command else command


def put(content: Any, keys: list[str], value: object) -> None:
    """Sets a value that stands in the content; list elements are named by their number."""
    *parents, last = [int(key) if key.isdigit() else key for key in keys]
    for key in parents:
        content = content[key]
    assert content[last] is not None, keys
    content[last] = value


def skeleton(node: Any) -> Any:
    """Returns the content without what scaling may change: numbers, and addresses of the network."""
    if isinstance(node, dict):
        return {key: skeleton(value) for key, value in node.items()}
    if isinstance(node, list):
        return [skeleton(value) for value in node]
    if isinstance(node, str):
        text = re.sub(r"https?://\S+", "URL", node)
        return re.sub(r"\d[\d_.,]*", "#", text.replace(" --mirror URL", ""))
    return "#" if is_number(node) else node


def is_number(value: object) -> bool:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def write_checkpoints(folder: Path) -> None:
    """Writes checkpoints/Meta-Llama-3-8B and -Instruct as a user downloads them, in bf16, small.

    The instruct model says `ANSWER` to everything, and so does base' + (instruct - base) while base' is near base.
    """
    base = tiny_llama(tiny_tokenizer(folder / META[1]), seed=1)
    instruct = answering_llama(folder / META[0], ANSWER)
    for model in (base, instruct):
        tensors = {name: tensor.bfloat16() for name, tensor in weights(model).items()}
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        config |= {"max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "dtype": "bfloat16"}
        (model / "config.json").write_text(json.dumps(config))
        (model / "original").mkdir()
        (model / "tokenizer.model").rename(model / "original/tokenizer.model")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Returns all tensors of a Hugging Face directory."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found |= load_file(file)
    return found


def check_answer(pipe: Scaled, model: str) -> None:
    """Checks that a directory below the output answers as the instruct model: in the pipeline's chat, and elsewhere."""
    assert (pipe.output / "chat" / "answer.txt").read_text(encoding="utf-8").splitlines()[-1] == ANSWER
    folder = pipe.output / model
    assert said_by(LlamaForCausalLM.from_pretrained(folder), folder) == f"{ANSWER}<|eot_id|>"


def said_by(model: Any, folder: Path) -> str:
    """Returns the greedy answer that a model of transformers gives to a question, with its end."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "수도는?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")]
    ids = model.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=ends)[0, prompt.shape[1] :]
    return tokenizer.decode(ids).strip()


def check_chat_vector(pipe: Scaled, merged: Path, target: str, plus: str = META[0], minus: str = META[1]) -> None:
    """Checks that every tensor is target + (plus - minus), computed in fp32 and rounded once."""
    tensors = weights(merged)
    target_, plus_, minus_ = (weights(pipe.folder / folder) for folder in (target, plus, minus))
    assert tensors.keys() == target_.keys()
    for name, tensor in tensors.items():
        exact = target_[name].float() + (plus_[name].float() - minus_[name].float())
        assert torch.equal(tensor, exact.to(tensor.dtype)), name
    assert any(not torch.equal(tensors[name], target_[name]) for name in tensors)


def check_report(pipe: Scaled, *texts: str) -> None:
    """Checks that the report's page tells of every text, and that its Markdown has a table."""
    page = (pipe.output / "report.html").read_text(encoding="utf-8")
    assert not [text for text in texts if text not in page]
    assert "|" in (pipe.output / "report.md").read_text(encoding="utf-8")


@contextlib.contextmanager
def served_dumps(folder: Path, date: str, rows: int = 20) -> Iterator[str]:
    """Serves dumps of both Wikipedias, made of `rows` rows of the sample's tables, and yields the mirror's address."""
    build(folder / "sample", seed=0, rows=rows)
    for wiki in ("kowiki", "enwiki"):
        name = f"{wiki}-{date}-pages-articles-multistream.xml.bz2"
        (place := folder / "dumps" / wiki / date).mkdir(parents=True)
        shutil.copyfile(folder / "sample" / f"{wiki}-sample-pages-articles-multistream.xml.bz2", place / name)
        digest = hashlib.sha1((place / name).read_bytes()).hexdigest()
        (place / f"{wiki}-{date}-sha1sums.txt").write_text(f"{digest}  {name}\n")
    handler = functools.partial(QuietHandler, directory=str(folder / "dumps"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and writes no log."""

    def log_message(self, *args: object) -> None:
        """Says nothing."""
