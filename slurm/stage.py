"""A pipeline's stage inside a job: the same stamps as `recipes.pipeline` leaves, so that both agree on what is done."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from configs.loader import ConfigError, load
from data_prep import pipeline, stages


@dataclass(frozen=True)
class StageOfJob:
    """The stage that this job, or this task of its array, runs."""

    stage: stages.Stage
    stamps: stages.Stamps
    expected: dict[str, str]
    """What the submission saw of the command, the configuration and the code."""
    folder: Path
    """Of the job's records."""

    @property
    def words(self) -> tuple[str, ...]:
        """The stage's command, as in the pipeline file."""
        return self.stage.words

    def begin(self) -> bool:
        """Records that the stage runs; False where its outputs are right already.

        Raises:
            ConfigError: an input is missing, or a file changed between submission and start.
        """
        dependencies = self.stamps.dependencies(self.stage)
        changed = [name for name, value in self.expected.items() if dependencies.get(name) != value]
        if changed:
            problem = f"{', '.join(changed)} changed since the pipeline was submitted; cancel it and submit it again"
            raise ConfigError(f"stage {self.stage.name}", [problem])
        return pipeline.begin(self.stamps, self.stage, dependencies, self.stage.name)

    def end(self, seconds: float) -> None:
        """Records that the stage ended well.

        Raises:
            UserError: it did not write one of its outputs.
        """
        pipeline.check_outputs(self.stage)
        self.stamps.end(self.stage, self.stamps.dependencies(self.stage), seconds)


def stage_of_job(environment: Mapping[str, str]) -> StageOfJob | None:
    """Returns the stage that slurm.submit gave this job; None for a job submitted by hand.

    Raises:
        ConfigError: the submission's files are gone.
    """
    if "KOTUNE_SUBMISSION" not in environment:
        return None
    folder = Path(environment["KOTUNE_SUBMISSION"])
    cfg = load(pipeline.PipelineConfig, folder / "pipeline.yaml", [], pipeline.check)
    names = environment["KOTUNE_STAGES"].split()
    name = names[int(environment.get("SLURM_ARRAY_TASK_ID", "0"))]
    found = {stage.name: stage for stage in pipeline.plan(cfg)}
    if name not in found:
        raise ConfigError(folder, [f"there is no stage {name}; one of {', '.join(found)} is expected; submit again"])
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    return StageOfJob(found[name], stages.Stamps(Path(cfg.output_dir)), expected.get(name, {}), folder / "jobs" / name)
