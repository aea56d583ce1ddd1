"""Finds keys and passwords in a configuration, which is written into run folders, manifests and logs."""

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

NAME = re.compile(
    r"(?:\w+_)?(?:api_?key|access_key|private_key|secret_key|(?:access|auth|bearer|hf)_token|secret|passw(?:or)?d|credentials)"
    r"|auth|token|authorization|[A-Z_]+_TOKEN"
)
"""Keys whose value is a secret, small or large; `api_key_env` and the like only name a variable."""
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s@]*:[^/\s@]+@", re.IGNORECASE)
"""An address with user and password."""
VARIABLE = re.compile(r"\$\{oc\.env:\s*['\"]?(\w*(?:KEY|TOKEN|SECRET|PASSW|CREDENTIAL)\w*)", re.IGNORECASE)
"""An environment variable that would be written out with the resolved configuration."""
TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-(?:\w{1,6}-){0,2}\w{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[A-Z0-9]{16}|AIza[\w-]{35})"
)
"""What the keys of Hugging Face, OpenAI, GitHub, AWS and Google look like."""
REMEDY = "export it as the environment variable that the service reads, and remove it here"


def secret_problems(layer: DictConfig) -> list[str]:
    """Returns a problem for every value of a file or command line that looks like a secret; it is not repeated."""
    container = OmegaConf.to_container(layer, resolve=False, throw_on_missing=False)
    return [
        f"{key}: {reason} (its value is not shown); configurations are written into run folders and logs; {REMEDY}"
        for key, reason in _found(container, "")
    ]


def _found(node: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yields the dotted key of every secret below `node`, and why it is taken for one."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _found(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _found(value, f"{key}[{index}]")
    elif node is not None and _is_secret(key.rpartition(".")[2].replace("-", "_")):
        yield key, "is named like a secret"
    elif isinstance(node, str) and ADDRESS.search(node):
        yield key, "holds an address with a password"
    elif isinstance(node, str) and (variable := VARIABLE.search(node)):
        yield key, f"takes the value of the environment variable {variable[1]}"
    elif isinstance(node, str) and TOKEN.search(node):
        yield key, "holds what looks like the key of a service"


def _is_secret(name: str) -> bool:
    return bool(NAME.fullmatch(name) or NAME.fullmatch(name.lower()))
