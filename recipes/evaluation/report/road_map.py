"""The lineage of models as a drawing: which data and models went into which run, and what came out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from recipes.evaluation.report.html import scrolling, section
from recipes.evaluation.report.sources import Artifact, Run, Sources
from recipes.evaluation.report.words import both

WIDTH, HEIGHT = 150, 44
GAP_X, GAP_Y = 46, 14
LONGEST = 20
"""Characters of a name in its box."""


@dataclass
class Node:
    """Something that was made, and the paths of what it was made from."""

    path: Path
    label: str
    """The last parts of the path that no other node shares."""
    kind: str
    fact: str
    inputs: list[Path]
    depth: int = 0
    row: int = 0
    parents: list["Node"] = field(default_factory=list)


def road_map(found: Sources) -> str:
    """Returns the section with the drawing; none with fewer than two things that belong together."""
    nodes = lay_out(found)
    if not any(node.parents for node in nodes):
        return ""
    width = max(node.depth for node in nodes) * (WIDTH + GAP_X) + WIDTH + 2
    height = max(node.row for node in nodes) * (HEIGHT + GAP_Y) + HEIGHT + 2
    edges = "".join(_edge(parent, node) for node in nodes for parent in node.parents)
    boxes = "".join(_box(node) for node in nodes)
    told = "; ".join(f"{name} from {parents}" for name, _, parents in road_text(found) if parents)
    svg = (
        f'<svg class="road" viewBox="0 0 {width} {height}" style="min-width:{width}px" role="img" '
        f'aria-label="{escape(told, quote=True)}">{edges}{boxes}</svg>'
    )
    note = both("Arrows point from what was read to what was made.")
    return section("Road map", f"<p>{note}</p>{scrolling('Road map', svg)}")


def lay_out(found: Sources) -> list[Node]:
    """Returns the nodes in columns: each to the right of all it was made from, in rows by the order they were given."""
    nodes = [_artifact_node(one) for one in found.artifacts] + [_run_node(run) for run in found.runs]
    for node in nodes:
        if [other.path.name for other in nodes].count(node.path.name) > 1:
            node.label = "/".join(node.path.parts[-2:])
    for node in nodes:
        parents = [
            other for path in node.inputs for other in nodes if other is not node and _is_within(path, other.path)
        ]
        node.parents = list({id(parent): parent for parent in parents}.values())
    for _ in nodes:  # as many rounds as the longest road can have edges
        for node in nodes:
            node.depth = max((parent.depth + 1 for parent in node.parents), default=0)
    rows: dict[int, int] = {}
    for node in nodes:
        node.row = rows.get(node.depth, 0)
        rows[node.depth] = node.row + 1
    return nodes


def _artifact_node(artifact: Artifact) -> Node:
    manifest = artifact.manifest
    kind, fact = "data", ""
    if manifest.get("kind") == "model" or artifact.norms:
        kind = "model"
    elif "num_tokens" in manifest:
        kind, fact = "tokens", f"{manifest['num_tokens']:,}"
    elif "documents" in (manifest.get("counts") or {}):
        kind, fact = "documents", f"{manifest['counts']['documents']:,}"
    elif "examples" in (manifest.get("ledger") or {}):
        kind, fact = "examples", f"{sum(manifest['ledger']['examples']['out'].values()):,}"
    inputs = [Path(one["path"]) for one in manifest.get("inputs", {}).values() if isinstance(one, dict)]
    return Node(artifact.folder, artifact.folder.name, kind, fact, inputs)


def _run_node(run: Run) -> Node:
    read = [one.get(key) for one in run.mixture.get("sources", {}).values() for key in ("shards", "chat")]
    fact = f"{run.steps[-1]['train/tokens']:,.0f}" if run.steps and "train/tokens" in run.steps[-1] else ""
    return Node(run.folder, run.folder.name, "run", fact, [Path(path) for path in [run.weights, *read] if path])


def _is_within(path: Path, folder: Path) -> bool:
    """Whether a path that a manifest names lies in a folder; relative ones also when the work was moved elsewhere."""
    parts = folder.absolute().parts
    candidates = [path, *path.parents]
    if path.is_absolute():
        return folder.absolute() in candidates
    return any(len(one.parts) > 1 and parts[-len(one.parts) :] == one.parts for one in candidates)


def _position(node: Node) -> tuple[int, int]:
    return 1 + node.depth * (WIDTH + GAP_X), 1 + node.row * (HEIGHT + GAP_Y)


def _edge(parent: Node, node: Node) -> str:
    (x1, y1), (x2, y2) = _position(parent), _position(node)
    x1, y1, y2 = x1 + WIDTH, y1 + HEIGHT // 2, y2 + HEIGHT // 2
    middle = (x1 + x2) // 2
    return f'<path class="edge" d="M{x1} {y1}C{middle} {y1} {middle} {y2} {x2 - 5} {y2}m-5 -4l6 4l-6 4"/>'


def _box(node: Node) -> str:
    x, y = _position(node)
    name = node.label if len(node.label) <= LONGEST else f"…{node.label[1 - LONGEST :]}"
    words = f"{both(node.kind, tag='tspan')} {escape(node.fact)}"
    return (
        f'<rect class="{escape(node.kind)}" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f'<text class="name" x="{x + 10}" y="{y + 18}">{escape(name)}</text>'
        f'<text x="{x + 10}" y="{y + 34}">{words}</text>'
    )


def road_text(found: Sources) -> Sequence[tuple[str, str, str]]:
    """Returns (name, kind and figure, made from) of every node, for Markdown."""
    return [
        (node.label, f"{node.kind} {node.fact}".strip(), ", ".join(parent.label for parent in node.parents))
        for node in lay_out(found)
    ]
