"""The lineage of models as a drawing: which data and models went into which run, and what came out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import fmean

from recipes.evaluation.report.html import scrolling
from recipes.evaluation.report.sources import Artifact, Run, Sources
from recipes.evaluation.report.words import both

WIDTH, HEIGHT = 118, 44
GAP_X, GAP_Y = 26, 14
LEAST = 0.8
"""Of its size to which the drawing shrinks before it scrolls; its letters have 12 pixels."""
LONGEST = 16
"""Characters of a name in its box."""


LANE = "lane"
LANE_ROWS = 0.4
"""Room for a road that passes a column, in rows."""


@dataclass(eq=False)
class Node:
    """Something that was made, and the paths of what it was made from."""

    path: Path
    label: str
    """Of the page: the last parts of the path that nothing else has."""
    kind: str
    fact: str
    inputs: list[Path]
    depth: int = 0
    row: float = 0.0
    parents: list["Node"] = field(default_factory=list)
    routes: list[list["Node"]] = field(default_factory=list)
    """From each parent, through the lanes of the columns between, to this one."""


def road_map(found: Sources) -> str:
    """Returns the drawing, and for a phone a list; nothing with fewer than two things that belong together."""
    nodes = lay_out(found)
    if not nodes:
        return ""
    width = max(node.depth for node in nodes) * (WIDTH + GAP_X) + WIDTH + 3
    bottom = max(passed.row + _rows(passed) for node in nodes for route in [[node], *node.routes] for passed in route)
    height = round(bottom * (HEIGHT + GAP_Y)) - GAP_Y + 3
    edges = "".join(_road(route) for node in nodes for route in node.routes)
    boxes = "".join(_box(node) for node in nodes)
    told = "; ".join(f"{name} from {parents}" for name, _, parents in road_text(found) if parents)
    svg = (
        f'<svg class="road" viewBox="0 0 {width} {height}" style="min-width:{LEAST * width:.0f}px;max-width:{width}px" '
        f'role="img" aria-label="{escape(told, quote=True)}">{edges}{boxes}</svg>'
    )
    note = both("Arrows point from what was read to what was made.")
    items = "".join(map(_item, nodes))
    drawing = f'<div class="wide"><p>{note}</p>{scrolling("Road map", svg)}</div>'
    return f'{drawing}<ol class="road narrow">{items}</ol>'


def _item(node: Node) -> str:
    parents = ", ".join(escape(parent.label) for parent in node.parents)
    read = f"<small>← {parents}</small>" if parents else ""
    return (
        f'<li class="{escape(node.kind)}"><b>{escape(node.label)}</b> {both(node.kind)} {escape(node.fact)}{read}</li>'
    )


def lay_out(found: Sources) -> list[Node]:
    """Returns what belongs together, in columns: each to the right of all it was made from, near their middle."""
    nodes = [_artifact_node(one) for one in found.artifacts] + [_run_node(run) for run in found.runs]
    for node in nodes:
        parents = [
            other for path in node.inputs for other in nodes if other is not node and _is_within(path, other.path)
        ]
        node.parents = list({id(parent): parent for parent in parents}.values())
    nodes = [node for node in nodes if node.parents or any(node in other.parents for other in nodes)]
    for _ in nodes:  # as many rounds as the longest road can have edges
        for node in nodes:
            node.depth = max((parent.depth + 1 for parent in node.parents), default=0)
    for node in nodes:  # what has no origin here stands beside its first use
        uses = [other.depth for other in nodes if node in other.parents]
        node.depth = min(uses) - 1 if uses and not node.parents else node.depth
    lanes = _lanes(nodes)
    for depth in range(max((node.depth for node in nodes), default=0) + 1):
        _place([node for node in (*nodes, *lanes) if node.depth == depth])
    return sorted(nodes, key=lambda node: (node.depth, node.row))


def _lanes(nodes: list[Node]) -> list[Node]:
    """Returns the places where roads pass a column, one for all that come from the same node; sets the routes."""
    lanes: dict[tuple[Node, int], Node] = {}
    for node in nodes:
        for parent in node.parents:
            route = [parent]
            for depth in range(parent.depth + 1, node.depth):
                lane = Node(parent.path, "", LANE, "", [], depth, parents=[route[-1]])
                route.append(lanes.setdefault((parent, depth), lane))
            node.routes.append([*route, node])
    return list(lanes.values())


def _place(column: list[Node]) -> None:
    """Puts the nodes of a column below each other, each as near as there is room to the middle of its parents."""
    free = 0.0
    for node in sorted(column, key=_middle):
        node.row = max(free, _middle(node))
        free = node.row + _rows(node)


def _rows(node: Node) -> float:
    return LANE_ROWS if node.kind == LANE else 1.0


def _middle(node: Node) -> float:
    return fmean([parent.row for parent in node.parents] or [0.0])


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
    return Node(artifact.folder, artifact.name, kind, fact, inputs)


def _run_node(run: Run) -> Node:
    read = [one.get(key) for one in run.mixture.get("sources", {}).values() for key in ("shards", "chat")]
    fact = f"{run.steps[-1]['train/tokens']:,.0f}" if run.steps and "train/tokens" in run.steps[-1] else ""
    return Node(run.folder, run.name, "run", fact, [Path(path) for path in [run.weights, *read] if path])


def _is_within(path: Path, folder: Path) -> bool:
    """Whether a path that a manifest names lies in a folder; relative ones also when the work was moved elsewhere."""
    parts = folder.absolute().parts
    candidates = [path, *path.parents]
    if path.is_absolute():
        return folder.absolute() in candidates
    return any(len(one.parts) > 1 and parts[-len(one.parts) :] == one.parts for one in candidates)


def _position(node: Node) -> tuple[int, int]:
    return 1 + node.depth * (WIDTH + GAP_X), round(1 + node.row * (HEIGHT + GAP_Y))


def _road(route: list[Node]) -> str:
    """Returns the line from the right side of the first box, across the columns between, to the left of the last."""
    x, y = _position(route[0])
    x, y = x + WIDTH, y + HEIGHT // 2
    drawn = f"M{x} {y}"
    for node in route[1:]:
        left, top = _position(node)
        is_lane = node.kind == LANE
        end, height = left - (0 if is_lane else 5), top + round(_rows(node) * HEIGHT / 2)
        middle = (x + end) // 2
        drawn += f"C{middle} {y} {middle} {height} {end} {height}" + (f"H{left + WIDTH}" if is_lane else "")
        x, y = left + WIDTH, height
    return f'<path class="edge" d="{drawn}m-5 -4l6 4l-6 4"/>'


def _box(node: Node) -> str:
    x, y = _position(node)
    name = node.path.name  # the second line tells a model from the run of the same name
    name = name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"
    words = f"{both(node.kind, tag='tspan')} {escape(node.fact)}"
    return (
        f"<g><title>{escape(node.label)}</title>"
        f'<rect class="{escape(node.kind)}" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f'<text class="name" x="{x + 9}" y="{y + 18}">{escape(name)}</text>'
        f'<text x="{x + 9}" y="{y + 34}">{words}</text></g>'
    )


def road_text(found: Sources) -> Sequence[tuple[str, str, str]]:
    """Returns (name, kind and figure, made from) of every node, for Markdown."""
    return [
        (node.label, f"{node.kind} {node.fact}".strip(), ", ".join(parent.label for parent in node.parents))
        for node in lay_out(found)
    ]
