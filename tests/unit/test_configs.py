"""Every YAML file under configs/ loads against the schema of the recipe that reads it."""

import pytest
from omegaconf import OmegaConf

import recipes.chat
import recipes.chat_vector
import recipes.cpt
import recipes.evaluate
import recipes.evaluate_run
import recipes.export
import recipes.extend
import recipes.harness
import recipes.sft
import recipes.sweep
from configs.loader import load
from data_prep.dedup.cluster_plan import ClusterConfig
from data_prep.dialogue.generate import GenerateConfig
from data_prep.filters.rules import Rules
from data_prep.pipeline import PipelineConfig, plan
from recipes.training.data.mixture import MixtureConfig
from recipes.training.model.decoder import Architecture
from slurm.cluster import ClusterSettings
from tests.support import ROOT

FILES = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "tasks")  # the harness's own
SCHEMAS = {
    "cpt": recipes.cpt.CptConfig,
    "sft": recipes.sft.SftConfig,
    "chat_vector": recipes.chat_vector.ChatVectorConfig,
    "evaluate": recipes.evaluate.EvaluateConfig,
    "evaluate_run": recipes.evaluate_run.EvaluateRunConfig,
    "harness": recipes.harness.HarnessConfig,
    "sweep": recipes.sweep.SweepConfig,
    "export": recipes.export.ExportConfig,
    "extend": recipes.extend.ExtendConfig,
    "pipelines": PipelineConfig,
    "chat": recipes.chat.ChatConfig,
    "mixture": MixtureConfig,
    "filters": Rules,
    "cluster": ClusterConfig,
    "dialogue": GenerateConfig,
    "slurm": ClusterSettings,
}
FROM_THE_COMMAND_LINE = {
    "export": ["output_dir=x", "run=x"],
    "chat": ["model=x"],
    "dialogue": ["model=x", "output_dir=x"],
}


def test_there_are_files():
    assert len(FILES) >= 8


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_it_loads_and_its_components_resolve(path):
    kind = path.stem if path.parent.name == "configs" else path.parent.name
    if kind == "data":  # data_prep's and the trainer's side by side, told apart by the first word of their names
        kind = path.stem.split("_")[0]
    if kind == "models":
        blocks = OmegaConf.load(path)
        assert set(blocks) <= {"weights", "model"}
        OmegaConf.merge(OmegaConf.structured(Architecture), blocks.get("model", {}))
        return
    cfg = load(SCHEMAS[kind], path, FROM_THE_COMMAND_LINE.get(kind, []))  # resolves each _component_ as well
    if "seq_len" in cfg and "global_batch_tokens" in cfg:
        assert cfg.global_batch_tokens % cfg.seq_len == 0


@pytest.mark.parametrize("path", sorted((ROOT / "configs/pipelines").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_stages_of_a_pipeline_name_files_that_exist_and_inputs_that_are_made(path):
    made: set[str] = set()
    for stage in plan(load(PipelineConfig, path)):
        assert stage.config is None or (ROOT / stage.config).is_file()
        for word in stage.words:
            assert not word.startswith("configs/") or (ROOT / word).is_file(), word
        for name in map(str, stage.inputs):
            known = any(name == one or name.startswith(f"{one}/") or one.startswith(f"{name}/") for one in made)
            assert known or (ROOT / name).exists(), f"{stage.name}: nothing makes {name}"
        made |= set(map(str, stage.outputs))
