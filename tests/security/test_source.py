"""The source itself: nothing that runs code out of a file, a configuration or a shell's command line."""

import ast
from collections.abc import Iterator

import pytest

from tests.support import ROOT

PACKAGES = ("configs", "data_prep", "recipes", "slurm")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp",
    "ssl._create_unverified_context",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "torch.hub.load",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "shutil.unpack_archive",
    "jinja2.Environment", "jinja2.Template", "subprocess.getoutput", "subprocess.getstatusoutput",
}  # fmt: skip
"""Run what they are given, or trust it; the safe forms are yaml.safe_load, safetensors and Jinja's sandbox."""
MODULES = {"tarfile", "zipfile", "shelve", "dill", "cloudpickle", "joblib", "xml"}
"""Archives lead out of their folder, the next four are pickles, and the standard library's XML expands entities."""
HARMLESS = {"xml.sax.saxutils"}
"""Escapes; parses nothing."""
KEYWORDS = {
    "trust_remote_code": False, "shell": False, "allow_pickle": False, "verify": True, "resolve_entities": False,
    "weights_only": True, "load_dtd": False, "no_network": True,
}  # fmt: skip
"""Arguments that must have one value wherever they are given; `verify` of our own functions takes variables too."""
NEEDED = {
    "torch.load": "weights_only",
    "etree.XMLParser": "resolve_entities",
    "lxml.etree.XMLParser": "resolve_entities",
    "dcp.load": "planner",
    "dcp.state_dict_loader.load": "planner",
}
"""Calls that must state one of their arguments: the defaults differ between versions, or run what a file names."""
METADATA = ROOT / "recipes/training/checkpoints/metadata.py"
ALLOWED = {(METADATA, "pickle.Unpickler")}
"""The reader of checkpoints' tables of contents, which admits a list of classes."""


def name_of(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def findings(tree: ast.AST) -> Iterator[str]:
    """Yields what is dangerous in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"import of {name}" for name in names if name.split(".")[0] in MODULES and name not in HARMLESS)
        elif isinstance(node, ast.ClassDef):
            yield from (name_of(base) for base in node.bases if name_of(base) in CALLS - {"jinja2.Template"})
        elif isinstance(node, ast.Call):
            name, given = name_of(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
            if name in CALLS:
                yield name
            if (needed := NEEDED.get(name)) and needed not in given:
                yield f"{name} without {needed}"
            for key in given.keys() & KEYWORDS.keys():
                value = given[key]
                if isinstance(value, ast.Constant) and value.value is not None and value.value != KEYWORDS[key]:
                    yield f"{name}({key}={value.value})"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_runs_nothing_from_outside(path):
    found = [what for what in findings(ast.parse(path.read_text(encoding="utf-8"))) if (path, what) not in ALLOWED]
    assert found == [], f"{path.relative_to(ROOT)}: {', '.join(found)}"


def test_every_package_is_looked_at():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} >= {"configs", "data_prep", "recipes"}
    assert len(FILES) > 100


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "dcp.load(tensors, checkpoint_id=path)",
        "torch.load(path, weights_only=False)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "datasets.load_dataset(name, trust_remote_code=True)",
        "pickle.load(file)",
        "class Reader(pickle.Unpickler): pass",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "yaml.load(text)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "import tarfile",
        "from xml.etree import ElementTree",
        "etree.XMLParser(huge_tree=True)",
        "etree.XMLParser(resolve_entities=True)",
        "httpx.get(url, verify=False)",
        "jinja2.Environment()",
    ],
)
def test_the_rules_see_what_they_are_for(line):
    assert list(findings(ast.parse(line)))
