"""What a cluster needs said once: partitions, account, modules, container, network."""

from dataclasses import dataclass, field

from omegaconf import DictConfig

from data_prep.pipeline import TIME


@dataclass
class ClusterSettings:
    """One cluster; `slurm.submit --cluster FILE`. A stage's `resources` win over it."""

    partition: str | None = None
    """Of stages without GPUs; null: the cluster's default."""
    gpu_partition: str | None = None
    """Of stages with GPUs; null: the same."""
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    """Features that a node must have, as sbatch reads them."""
    exclude: list[str] = field(default_factory=list)
    """Nodes known to be bad."""
    time: str = "24:00:00"
    """Limit of a stage that gives none."""
    lead_seconds: int = 300
    """A training is warned so long before its limit, if its last run says nothing else; twice a save and some more."""
    spare_nodes: int = 0
    """Nodes of a training beyond those it uses: preflight picks the healthy ones."""
    preflight: bool = True
    """Whether a training's nodes are examined before it starts."""
    modules: str = ""
    """Words of `module load`."""
    venv: str | None = None
    """Virtual environment, on a disk that all nodes see; null: the one that submits."""
    interface: str | None = None
    """Network interface of rendezvous and gloo, e.g. ib0; null: the one of the node's address."""
    srun_options: str = ""
    """Further options of srun, such as pyxis' --container-image=..."""
    prefix: str = ""
    """Words before the command of every rank, such as `apptainer exec --nv IMAGE`."""
    environment: dict[str, str] = field(default_factory=dict)
    """Further variables of every job, such as NCCL_IB_HCA: mlx5_0."""
    sbatch: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch without their dashes, such as mail-user: name@example.org. They win over the #SBATCH
    lines of slurm/*.sbatch, and a stage's `resources` over them."""


def check(cfg: DictConfig) -> list[str]:
    """Returns what is wrong with the settings."""
    problems = []
    if cfg.lead_seconds < 120:
        problems.append(f"lead_seconds: {cfg.lead_seconds}; Slurm may be a minute late; set it to 120 or more")
    if not TIME.fullmatch(cfg.time):
        problems.append(f"time: {cfg.time!r} is no limit; [DAYS-]HH:MM:SS is expected; write it so, in quotes")
    if cfg.spare_nodes < 0:
        problems.append(f"spare_nodes: {cfg.spare_nodes} is negative; set it to 0 or more")
    if cfg.spare_nodes and not cfg.preflight:
        problems.append("spare_nodes: preflight=false; only preflight picks healthy nodes; set one of the two")
    return problems


def job_environment(cfg: DictConfig, interpreter_prefix: str) -> dict[str, str]:
    """Returns the variables of every job, as slurm/env.sh reads them."""
    return {
        "KOTUNE_VENV": cfg.venv or interpreter_prefix,
        "KOTUNE_MODULES": cfg.modules,
        "KOTUNE_INTERFACE": cfg.interface or "",
        "KOTUNE_SRUN_OPTIONS": cfg.srun_options,
        "KOTUNE_PREFIX": cfg.prefix,
        "KOTUNE_PREFLIGHT": "1" if cfg.preflight else "0",
        **cfg.environment,
    }
