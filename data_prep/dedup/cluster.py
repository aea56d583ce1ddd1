"""`python -m data_prep cluster`: clean, dedup and tokens as datatrove pipelines, on this machine or under Slurm.

The configuration gives the words of the commands `clean`, `dedup` and `tokens`; what they make is, byte for byte, what
the commands make on one machine. Parts of dumps and files of documents are spread over ranks. Started again, the
command skips what datatrove's completion files and the stages' own done-markers say is finished.
"""

import argparse
import os
from importlib.util import find_spec
from typing import Any

from configs.loader import load
from data_prep.dedup.cluster_plan import ClusterConfig, config_problems, forget_what_is_gone, make_plan, slurm_problems
from data_prep.document import CorpusError


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand `cluster`."""
    parser = subparsers.add_parser("cluster", help="clean, dedup, tokens on many machines", description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file, e.g. configs/data/cluster_kowiki.yaml")
    parser.add_argument("--executor", choices=("local", "slurm"), default="local", help="default: local")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="local: ranks at once")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the stages, or hands them to Slurm, and returns 0.

    Raises:
        ConfigError: the configuration cannot be used; nothing has begun.
        CorpusError: a stage failed (local executor), or datatrove is not installed.
    """
    if args.workers < 1:
        raise CorpusError(f"--workers is {args.workers}; at least 1 is needed; give the number of cores")
    is_slurm = args.executor == "slurm"
    cfg = load(ClusterConfig, args.config, args.overrides, slurm_problems if is_slurm else config_problems)
    if find_spec("datatrove") is None:
        raise CorpusError('datatrove is not installed; the extra `cluster` is expected; pip install -e ".[cluster]"')
    from data_prep.dedup import cluster_steps  # which imports it

    plan = make_plan(cfg, args.config)
    forget_what_is_gone(plan)
    if is_slurm:
        cluster_steps.submit(plan, cfg.slurm)
        print(f"submitted; logs and launch scripts: {plan.logs}; when all jobs have ended: {cfg.output_dir}")
        return 0
    cluster_steps.run_here(plan, args.workers)
    print(f"{cfg.output_dir}: {'dedup and tokens are' if cfg.tokens is not None else 'dedup is'} complete")
    return 0
