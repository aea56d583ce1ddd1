"""What every model card of ours shares: the Hub's header, the licence of the base, and the rules that it has."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data_prep.lineage import MANIFEST

CARD = "README.md"
NOTICE = "NOTICE"
LICENCE_FILE = re.compile(r"(LICENSE|USE_POLICY|NOTICE)(\.(md|txt))?", re.IGNORECASE)
LLAMA3_VOCABULARY, LLAMA3_THETA, LLAMA32_FACTOR = 128_256, 500_000.0, 32.0
_RIGHTS = "Copyright © Meta Platforms, Inc. All Rights Reserved."
_WIKI = re.compile(r"\w+wiki")
WIKIPEDIA = "CC BY-SA 4.0 (text of Wikipedia)"


@dataclass(frozen=True)
class Licence:
    """A licence of Meta's, and what it asks of a derived model that is passed on."""

    name: str
    agreement: str
    """Address of its text."""
    policy: str
    """Address of the acceptable use policy, which binds users of derived models too."""
    notice: str
    """Sentence that the file NOTICE must hold."""
    built_with: str | None
    """Words to be displayed with the model."""
    name_begins: str | None
    """What the name of a derived model must begin with."""


def _llama3(version: str) -> Licence:
    place, name = f"https://www.llama.com/llama3_{version}", f"Llama 3.{version}"
    notice = f"{name} is licensed under the {name} Community License, {_RIGHTS}"
    return Licence(
        f"{name} Community License", f"{place}/license", f"{place}/use-policy", notice, "Built with Llama", "Llama"
    )


# Source: sections 1.b and 2 of the agreements named in them.
LICENCES = {
    "llama2": Licence(
        "Llama 2 Community License",
        "https://ai.meta.com/llama/license",
        "https://ai.meta.com/llama/use-policy",
        f"Llama 2 is licensed under the LLAMA 2 Community License, {_RIGHTS.replace('©', '(c)')}",
        None,
        None,
    ),
    "llama3": Licence(
        "Meta Llama 3 Community License",
        "https://llama.meta.com/llama3/license",
        "https://llama.meta.com/llama3/use-policy",
        f"Meta Llama 3 is licensed under the Meta Llama 3 Community License, {_RIGHTS}",
        "Built with Meta Llama 3",
        "Llama 3",
    ),
    **{f"llama3.{version}": _llama3(version) for version in "123"},
}


def licence_of(folder: Path, config: Mapping[str, Any] | None = None) -> str | None:
    """Returns the Hub's identifier of a model's licence: that of its card, else what its shape tells; None if unknown.

    Args:
        folder: the model directory.
        config: of the model, or of the language model within it; default: the directory's config.json.
    """
    stated = read_header(folder).get("license")
    stated = read_header(folder).get("license_name", stated) if stated == "other" else stated
    if isinstance(stated, str):
        return stated
    file = folder / "config.json"
    if config is None:
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return licence_by_shape(config)


def licence_by_shape(config: Mapping[str, Any]) -> str | None:
    """Returns the licence of Llama-3, 3.1 or 3.2 by vocabulary and RoPE, which no renaming of a directory changes.

    Llama-2's shape is that of models under other licences too, and 3.3's is 3.1's: their cards have to tell.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta") or config.get("rope_theta")
    is_llama3 = (config.get("vocab_size") or 0) >= LLAMA3_VOCABULARY and theta == LLAMA3_THETA
    if config.get("model_type") != "llama" or not is_llama3:
        return None
    if rope.get("rope_type", rope.get("type")) != "llama3":
        return "llama3"
    return "llama3.2" if rope.get("factor") == LLAMA32_FACTOR else "llama3.1"


def name_problem(licence: str | None, name: str) -> str | None:
    """Returns what the licence has against a model's name, None if nothing."""
    begins = LICENCES[licence].name_begins if licence in LICENCES else None
    if begins is None or re.sub(r"[-_ ]", "", name).lower().startswith(begins.replace(" ", "").lower()):
        return None
    return f"the name {name!r} does not begin with {begins!r}, which the {LICENCES[licence or ''].name} asks for"


def licence_files(folder: Path) -> list[Path]:
    """Returns the licence, use policy and notice that lie in a model directory."""
    return [file for file in sorted(folder.glob("*")) if LICENCE_FILE.fullmatch(file.name) and file.is_file()]


def write_notice(folder: Path, licence: str | None) -> None:
    """Writes the notice that a licence of Meta's asks for, unless a file of that name is there."""
    has_one = any(file.stem.upper() == NOTICE for file in licence_files(folder))
    if licence in LICENCES and not has_one:
        (folder / NOTICE).write_text(LICENCES[licence].notice + "\n", encoding="utf-8")


def header(facts: Mapping[str, Any]) -> str:
    """Returns the YAML between `---` that the Hub reads; facts that are None or empty are left out."""
    known = {key: value for key, value in facts.items() if value not in (None, [], "")}
    return f"---\n{yaml.safe_dump(known, sort_keys=False, allow_unicode=True)}---"


def read_header(folder: Path) -> dict[str, Any]:
    """Returns the header of a directory's README.md, empty without one; a damaged one tells nothing either."""
    file = folder / CARD
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        found = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def built_with(licence: str | None) -> str | None:
    """Returns the words that the licence wants displayed with the model, None where it asks for none."""
    return LICENCES[licence].built_with if licence in LICENCES else None


def licence_text(licence: str) -> str:
    """Returns the section on a licence of the base."""
    if licence not in LICENCES:
        return f"`{licence}`, that of the model it was made from."
    known = LICENCES[licence]
    naming = (
        f" The name of a model made from this one must begin with “{known.name_begins}”." if known.name_begins else ""
    )
    return (
        f"[{known.name}]({known.agreement}). Use is bound by the [acceptable use policy]({known.policy}).{naming}\n\n"
        f"{known.notice}"
    )


def data_licence(source: str, stated: Mapping[str, str]) -> str | None:
    """Returns the licence of a source of training text: the stated one, Wikipedia's by its name, or None."""
    return stated.get(source) or (WIKIPEDIA if _WIKI.fullmatch(source) else None)


def stages_of(folder: Path) -> list[dict[str, Any]]:
    """Returns what was done to a model, oldest first, as far as the manifests that lie on disk tell.

    An export carries the stages of the model it started from in its own manifest; a merge names its models.
    """
    file = folder / MANIFEST
    manifest = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if manifest.get("kind") == "merge":
        models = {role: one["path"] for role, one in manifest.get("inputs", {}).items() if "path" in one}
        before = stages_of(Path(models["target"])) if "target" in models else []
        return [*before, {"kind": "merge", "models": models}]
    return list(manifest.get("stages") or [])
