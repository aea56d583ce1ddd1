# shellcheck shell=bash
# Environment of every job: modules, Python, network. Each sbatch file sources it from the repository root, which is
# where the job starts. Change a value for one job with `sbatch --export=ALL,KOTUNE_VENV=/path ...`; for a whole
# pipeline, in the cluster file that slurm.submit reads.

# --- software ---------------------------------------------------------------------------------------------------
: "${KOTUNE_MODULES:=}"           # words of `module load`, e.g. "cuda/12.8"
: "${KOTUNE_VENV:=$PWD/.venv}"    # virtual environment, on a disk that all nodes see
if [ -n "$KOTUNE_MODULES" ]; then
    # shellcheck disable=SC2086  # several words
    module load $KOTUNE_MODULES
fi
if [ ! -x "$KOTUNE_VENV/bin/python" ]; then
    echo "error: KOTUNE_VENV=$KOTUNE_VENV has no bin/python; a virtual environment that all nodes see is expected;" \
        "run 'make install', or set it to an absolute path" >&2
    exit 2
fi
export PATH="$KOTUNE_VENV/bin:$PATH" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1

# --- containers -------------------------------------------------------------------------------------------------
# With one of these, ranks run in the image, slurm/supervise.py on the host; the image brings Python and the packages.
#   pyxis/enroot:  KOTUNE_SRUN_OPTIONS="--container-image=/images/kotune.sqsh --container-mounts=/data,$PWD --container-workdir=$PWD"
#   apptainer:     KOTUNE_PREFIX="apptainer exec --nv --bind /data,$PWD --pwd $PWD /images/kotune.sif"
# Under apptainer, export what a rank needs as APPTAINERENV_* if the site cleans the environment.
export KOTUNE_SRUN_OPTIONS="${KOTUNE_SRUN_OPTIONS:-}" KOTUNE_PREFIX="${KOTUNE_PREFIX:-}"

# --- network ----------------------------------------------------------------------------------------------------
# Interface of the rendezvous and of gloo, e.g. ib0 or eno1. Empty: the one that the node's address in Slurm belongs to.
# NCCL finds InfiniBand by itself; set what it finds wrongly, once per cluster:
#   NCCL_SOCKET_IFNAME=ib0          bootstrap interface ("^docker,lo" excludes)
#   NCCL_IB_HCA=mlx5_0,mlx5_1      adapters of the compute network, when storage adapters must stay out
#   NCCL_IB_GID_INDEX=3             RoCE v2; not on InfiniBand
#   NCCL_IB_TIMEOUT=22 NCCL_IB_RETRY_CNT=10    large fabrics: longer before a link flap kills the job
#   NCCL_DEBUG=INFO                 what it chose, in logs of the ranks; look for "NET/IB", not "NET/Socket"
if [ -n "${KOTUNE_INTERFACE:-}" ]; then
    export GLOO_SOCKET_IFNAME="$KOTUNE_INTERFACE" NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-$KOTUNE_INTERFACE}"
fi
# A collective that fails or times out ends its process, and what each rank was waiting for is written down first.
export TORCH_NCCL_ASYNC_ERROR_HANDLING="${TORCH_NCCL_ASYNC_ERROR_HANDLING:-3}"
export TORCH_NCCL_DUMP_ON_TIMEOUT="${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}"
export TORCH_FR_BUFFER_SIZE="${TORCH_FR_BUFFER_SIZE:-2000}"
