"""What looks at a run without changing it: metrics, rates, held-out text, the profiler."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from recipes.training.data.plan import DataPlan
from recipes.training.distributed import World, on_rank_zero
from recipes.training.monitoring.metrics import Metrics
from recipes.training.monitoring.profiling import StepProfiler
from recipes.training.monitoring.throughput import Throughput
from recipes.training.monitoring.tracking import Tracker
from recipes.training.monitoring.validation import Validation
from recipes.training.step import Run, StepResult


@dataclass(frozen=True)
class Observers:
    """Ready to be told of each step; only rank 0 has `metrics`."""

    cfg: DictConfig
    data: DataPlan
    world: World
    throughput: Throughput
    profiler: StepProfiler
    validation: Validation | None
    metrics: Metrics | None

    def step_ended(self, step: int, result: StepResult, seconds: float) -> None:
        """Writes down the figures of a step, counted from 1, that took `seconds`."""
        self.profiler.step()
        if self.metrics:
            tokens = {f"tokens/{source}": count for source, count in self.data.tokens(step).items()}
            self.metrics.log_step(step, result.metrics | self.throughput.of_step(seconds) | tokens)

    def validation_is_due(self, step: int) -> bool:
        """Whether held-out text is to be scored behind a step."""
        return self.validation is not None and self.validation.is_due(step)

    def validate(self, run: Run, stop: object) -> bool:
        """Scores the held-out text if that is due; returns False when a rank was asked to stop meanwhile.

        `stop` is true when this rank is asked to stop; it is looked at before each batch.
        """
        if self.validation is None or not self.validation.is_due(run.step):
            return True
        values = self.validation.run(run.model, self.cfg, self.world, run.step, stop)
        if values is None:
            return False
        figures, warning = self.validation.judge(values, self.data)
        if self.metrics:
            self.metrics.log_validation(run.step, values | figures)
            self.metrics.note(f"step {run.step}: {summary(values)}")
            logging.getLogger("kotune").info("step %d: %s", run.step, summary(values))
        if run.step and self.validation.baseline_step == run.step:
            self.warn(
                f"step {run.step}: rises are told over this step and not over the start: the checkpoint has no scores "
                "of these texts; to keep the old ones, go on with the `validation` that it was written with"
            )
        if warning:
            self.warn(f"step {run.step}: {warning}")
        return True

    def warn(self, text: str) -> None:
        """Tells the user and the log."""
        logging.getLogger("kotune").warning(text)
        if self.metrics:
            self.metrics.note(f"warning: {text}")


@contextmanager
def open_metrics(
    cfg: DictConfig, name: str, start_step: int, repeats_validation: bool, world: World
) -> Iterator[Metrics | None]:
    """Yields the run's metrics on rank 0, None on the others.

    Args:
        cfg: `TrainSettings`.
        name: label of the progress bar.
        start_step: steps that are done already.
        repeats_validation: whether the run starts with a validation.
        world: the ranks.

    Raises:
        ConfigError: W&B does not start.
    """
    folder, opened = Path(cfg.output_dir), list[Metrics]()
    with ExitStack() as stack:

        def open_here() -> None:
            tracker = Tracker(folder, cfg) if cfg.wandb is not None else None
            metrics = Metrics(
                folder, start_step, cfg.steps, name, tracker=tracker, repeats_validation=repeats_validation
            )
            opened.append(stack.enter_context(metrics))

        on_rank_zero(world, open_here)  # so that its error is every rank's
        yield opened[0] if opened else None


def summary(values: dict[str, float]) -> str:
    """Returns what held-out text scored, in one line."""
    told = []
    for key, value in values.items():
        if key.endswith("/bits_per_byte"):
            text = key.split("/")[1]
            told.append(f"{text} {value:.4f} bits per byte ({values[f'validation/{text}/rise']:+.1%})")
    return f"held-out {', '.join(told)}; {values['time/validation']:.1f} s"
