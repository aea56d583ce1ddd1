#!/usr/bin/env bash
# One task of a step: names its rank as torch.distributed expects it and runs the words after the file name.
#   srun ... bash slurm/rank.sh python -m recipes.cpt --config ...
#
# One task per rank, without torchrun: torchrun dies of SIGUSR1 and turns every exit code into 1, so that "checkpoint
# written, start again" (85) could not be told from a failure; and its agents are one more thing that can hang.
# MASTER_ADDR and MASTER_PORT come from slurm/supervise.py.
export RANK="$SLURM_PROCID" WORLD_SIZE="$SLURM_NTASKS" LOCAL_RANK="$SLURM_LOCALID"
export LOCAL_WORLD_SIZE="${KOTUNE_RANKS_PER_NODE:-1}" GROUP_RANK="$SLURM_NODEID"
# Which attempt of which job it is. Its presence also tells recipes/training/distributed.py that a launcher watches.
export TORCHELASTIC_RUN_ID="$KOTUNE_ATTEMPT"

trap '' USR1 USR2   # until the trainer has its handlers, a signal must not kill it; exec passes the disposition on
trap : TERM         # the rank gets it too, and decides
# shellcheck disable=SC2086  # a container's command: several words or none
${KOTUNE_PREFIX:-} "$@"
code=$?
# The first failure is noted at once: srun itself waits for tasks of a dead node until Slurm gives that node up.
# 85 is none: this rank has saved and left, and another may still be writing.
if [ "$code" -ne 0 ] && [ "$code" -ne 85 ]; then
    echo "$(date +%T) ${SLURMD_NODENAME:-?} rank $SLURM_PROCID exit code $code" >>"$KOTUNE_ATTEMPT_DIR/failed"
fi
exit "$code"
