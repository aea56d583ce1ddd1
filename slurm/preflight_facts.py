"""What must be the same on all nodes: code, configuration, tokenizer, data, versions."""

import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from configs.loader import ConfigError
from data_prep.hf_directory import TOKENIZER_FILES
from data_prep.lineage import MANIFEST, sha256_file
from recipes.training.data.mixture import read_mixture
from slurm.preflight_meeting import Finding, Here, majority

ROOT = Path(__file__).resolve().parent.parent
CODE = ("configs", "data_prep", "recipes", "slurm")
PACKAGES = ("torch", "torchtune", "torchao", "safetensors", "omegaconf", "numpy")
REMEDIES = {
    "code": "let all nodes see the same checkout, as slurm.submit's snapshot on a shared disk",
    "config": "let all nodes read the same file, and start them with the same overrides",
    "tokenizer": "copy the model directory of the other nodes there",
    "data": "copy the shards of the other nodes there, or read them from a shared disk",
    "versions": "install the same versions on all nodes, as by one virtual environment on a shared disk",
}


def measure_facts(here: Here) -> dict[str, Any]:
    """Returns a mapping of names to values for each of `REMEDIES`; only a node's first rank reads files."""
    if not here.is_leader:
        return {}
    facts: dict[str, Any] = {"code": code_files(ROOT), "versions": versions()}
    if here.cfg is not None:
        facts["config"] = config_keys(here.cfg)
        facts["tokenizer"] = tokenizer_files(here.cfg)
        facts["data"] = data_files(here.cfg)
    return facts


def judge_facts(rows: dict[int, dict[str, Any]], here: Here) -> tuple[str, list[Finding]]:
    """Names the nodes that differ from most of them."""
    by_node = {here.nodes[rank]: row for rank, row in rows.items() if row}
    findings: list[Finding] = []
    for kind, remedy in REMEDIES.items():
        values = {node: row[kind] for node, row in by_node.items() if kind in row}
        findings += differences(kind, values, remedy)
    kinds = ", ".join(kind for kind in REMEDIES if any(kind in row for row in by_node.values()))
    code = next((digest(row["code"])[:12] for row in by_node.values() if "code" in row), "")
    return (f"the same on {len(by_node)} nodes: {kinds} (code {code})" if not findings else "differ"), findings


def differences(kind: str, values: dict[str, dict[str, str]], remedy: str) -> list[Finding]:
    """Returns a finding for each node whose mapping is not that of most nodes; without such, one for all."""
    hashes = {node: digest(value) for node, value in values.items()}
    if len(set(hashes.values())) <= 1:
        return []
    usual = majority(hashes)
    if usual is None:
        first, *others = values
        other = next(node for node in others if hashes[node] != hashes[first])
        told = f"{kind} differs between {first} and {other}: {what_differs(values[other], values[first])}"
        return [Finding(None, told, remedy)]
    right = next(values[node] for node in values if hashes[node] == usual)
    return [
        Finding(node, f"{kind} is not that of most nodes: {what_differs(values[node], right)}", remedy)
        for node in values
        if hashes[node] != usual
    ]


def what_differs(mine: dict[str, str], usual: dict[str, str], most: int = 3) -> str:
    """Returns the first names whose values differ, with both values where they are short."""
    names = sorted(name for name in mine.keys() | usual.keys() if mine.get(name) != usual.get(name))
    told = [f"{name} is {_short(mine.get(name))}, not {_short(usual.get(name))}" for name in names[:most]]
    return ", ".join(told) + (f" and {len(names) - most} more" if len(names) > most else "")


def _short(value: str | None) -> str:
    return "absent" if value is None else value if len(value) < 40 else value[:12]


def digest(value: Any) -> str:
    """Returns a hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def code_files(root: Path) -> dict[str, str]:
    """Returns the hash of each source file of the project."""
    paths = [path for package in CODE for path in sorted((root / package).rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): sha256_file(path) for path in paths if path.suffix in (".py", ".yaml", ".sh")}


def config_keys(cfg: DictConfig) -> dict[str, str]:
    """Returns the resolved values of the configuration by top-level key."""
    content = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(content, dict)
    return {str(key): json.dumps(value, sort_keys=True, default=str) for key, value in content.items()}


def tokenizer_files(cfg: DictConfig) -> dict[str, str]:
    """Returns the hashes of the tokenizer's files and of the model's shape beside the weights."""
    if cfg.weights is None:
        return {}
    paths = [Path(cfg.weights) / name for name in (*TOKENIZER_FILES, "config.json")]
    return {path.name: sha256_file(path) if path.is_file() else "absent" for path in paths}


def data_files(cfg: DictConfig) -> dict[str, str]:
    """Returns the hash of each source's manifest or file of examples, and the sizes of the files it names."""
    try:
        sources = read_mixture(cfg.data, cfg.global_batch_tokens).sources
    except ConfigError as error:
        return {"problem": "; ".join(error.problems)}
    found = {}
    for path in [source.path for source in sources]:
        if path.is_file():
            found[str(path)] = sha256_file(path)
            continue
        manifest = path / MANIFEST
        found[str(manifest)] = sha256_file(manifest) if manifest.is_file() else "absent"
        for file in sorted(path.glob("shard-*")):
            found[str(file)] = f"{file.stat().st_size} bytes"
    return found


def versions() -> dict[str, str]:
    """Returns the versions of what computes, and of the GPU's driver and NCCL where there are any."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    if torch.cuda.is_available():
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        found["cuda"] = str(torch.version.cuda)
    driver = Path("/proc/driver/nvidia/version")
    if driver.is_file():
        found["driver"] = driver.read_text(encoding="utf-8").splitlines()[0].strip()
    return found
