"""Imports run one way: configs <- data_prep <- recipes, and torchtune stays where it can be replaced."""

import ast
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGES = ("configs", "data_prep", "recipes", "slurm")
ROOMS = ("training", "merging", "evaluation")
MAY_IMPORT_TORCHTUNE = {
    "recipes/training/model/decoder.py",
    "recipes/training/model/weights.py",
    "recipes/training/data/packing.py",
}


def imports(source: str) -> list[tuple[int, str]]:
    """Returns (line, dotted name) of everything a module imports; `from a import b` counts as a.b."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def forbidden(path: str, name: str) -> bool:
    """Whether the module at `path` (relative to the root) must not import `name`."""
    package, parts = path.split("/")[0], name.split(".")
    allowed = {"configs": {"configs"}, "data_prep": {"configs", "data_prep"}}.get(package, set(PACKAGES))
    if parts[0] in PACKAGES and parts[0] not in allowed:
        return True
    if package in ("configs", "data_prep") and parts[0] in ("torch", "torchtune", "torchao"):
        return True
    room = path.split("/")[1] if path.count("/") > 1 else ""
    if package == "recipes" and parts[0] == "recipes" and len(parts) > 1:
        if room in ROOMS and parts[1] != room:
            return True
        if not room and parts[1] not in ROOMS:
            return True  # entry files do not import one another
    is_entry = package == "recipes" and not room
    return parts[0] == "torchtune" and not is_entry and path not in MAY_IMPORT_TORCHTUNE


def test_imports_run_one_way():
    files = [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 20
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for line, name in imports(path.read_text(encoding="utf-8"))
        if forbidden(path.relative_to(ROOT).as_posix(), name)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("path", "name", "is_forbidden"),
    [
        ("configs/loader.py", "data_prep.document", True),
        ("data_prep/tokens/encode.py", "recipes.training.data.packing", True),
        ("data_prep/tokens/encode.py", "torch.nn", True),
        ("recipes/merging/chat_vector.py", "recipes.training.model.weights", True),
        ("recipes/evaluation/scoring.py", "torchtune.modules", True),
        ("recipes/cpt.py", "recipes.sft", True),
        ("recipes/cpt.py", "recipes.training.loop", False),
        ("recipes/training/model/decoder.py", "torchtune.modules", False),
        ("recipes/training/loop.py", "torchtune.modules", True),
    ],
)
def test_the_rule_itself(path, name, is_forbidden):
    assert forbidden(path, name) is is_forbidden


def test_importing_a_module_prints_nothing_and_every_package_has_a_docstring():
    for package in ("configs", "data_prep", "recipes", *(f"recipes/{room}" for room in ROOMS)):
        assert ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))), package


def test_no_file_outgrows_its_limit():
    limits = [
        (p, 150 if p.parent.name == "recipes" else 300) for package in PACKAGES for p in (ROOT / package).rglob("*.py")
    ]
    too_long = [
        f"{p.relative_to(ROOT)}: {n}" for p, limit in limits if (n := len(Path(p).read_text().splitlines())) > limit
    ]
    assert not too_long
