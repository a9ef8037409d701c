#!/bin/bash
# Training on two nodes with four GPUs each: sbatch docs/slurm_train.sh /shared/LiTS /shared/runs/mpunet [--key value ...]
# Slurm sends SIGTERM two minutes before the time is over; the same command again then goes on from the last epoch.
#SBATCH --job-name=mpunet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
set -euo pipefail

dataset_dir=$1
output_dir=$2
shift 2
processes=${PROCESSES_PER_NODE:-4}
source .venv/bin/activate

first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
resume=false
if [ -f "$output_dir/last.pt" ] || [ -f "$output_dir/previous-last.pt" ]; then resume=true; fi

srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "$processes" \
    --rdzv_backend c10d --rdzv_endpoint "$first_node:29500" --rdzv_id "$SLURM_JOB_ID" \
    -m monai.bundle run training --config_file "['configs/train.json','configs/multi_gpu_train.json']" \
    --dataset_dir "$dataset_dir" --output_dir "$output_dir" --resume $resume "$@"
