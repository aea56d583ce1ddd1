"""The curves of runs as one PNG, for Markdown."""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names

from data_prep.lineage import whole_file
from recipes.evaluation.report.charts import smoothed
from recipes.evaluation.report.curves import held_out_of, loss_of
from recipes.evaluation.report.sources import Sources

KOREAN_FONTS = ("Noto Sans CJK KR", "Noto Sans CJK JP", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "AppleGothic")
"""The first two are one file on Linux, of which matplotlib knows the first name alone."""


def fonts() -> list[str]:
    """Returns matplotlib's own font, and those of this machine that have Hangul."""
    return ["DejaVu Sans", *(name for name in KOREAN_FONTS if name in get_font_names())]


def plot(path: Path, found: Sources) -> None:
    """Writes a PNG: the training loss, and the bits per byte of held-out text, as far as there are any."""
    losses = [(run.name, loss_of(run)) for run in found.runs if loss_of(run)]
    bits = [(f"{run.name}: {name}", points) for run in found.runs for name, points in held_out_of(run).items()]
    panels = [panel for panel in (("training loss", losses, ""), ("bits per byte, held out", bits, "o")) if panel[1]]
    with rc_context({"font.family": fonts()}):
        figure = Figure(figsize=(8, 3.5 * len(panels)), layout="constrained")
        every_axes = figure.subplots(len(panels), squeeze=False)[:, 0]
        for axes, (label, curves, marker) in zip(every_axes, panels, strict=True):
            for number, (name, points) in enumerate(curves):
                if not marker:
                    axes.plot(*zip(*points, strict=True), color=f"C{number}", alpha=0.25, linewidth=0.8)
                means = points if marker else smoothed(points)
                axes.plot(*zip(*means, strict=True), color=f"C{number}", marker=marker, label=name)
            axes.set(xlabel="step", ylabel=label)
            axes.grid(alpha=0.3)
            axes.legend()
        with whole_file(path) as partial:
            figure.savefig(partial, format="png", dpi=120, metadata={"Software": None})
