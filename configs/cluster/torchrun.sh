#!/bin/bash
# One run by torchrun, on this machine or on several. From the repository's root, on every node:
#
#   NNODES=2 NODE_RANK=0 HOST=node1 bash configs/cluster/torchrun.sh train_dpo.py CONFIG.yaml RUN_FOLDER [key.sub=value ...]
#
# HOST       a node's name, which all nodes can reach; its port PORT (29500) must be free
# NODE_RANK  0 on HOST, then 1, 2, ...; not set: torchrun numbers the nodes, in another order each time
# JOB        where NODE_RANK is not set: any word, the same on all nodes, of no other running job
# RANKS      ranks on each node; not set: one for each of its GPUs
set -eu
SCRIPT=${1:?expected SCRIPT CONFIG.yaml RUN_FOLDER [key.sub=value ...]}
CONFIG=${2:?expected SCRIPT CONFIG.yaml RUN_FOLDER [key.sub=value ...]}
RUN=${3:?expected SCRIPT CONFIG.yaml RUN_FOLDER [key.sub=value ...]}
shift 3

MEET=(--nnodes="${NNODES:-1}" --nproc_per_node="${RANKS:-gpu}")
if [ -n "${NODE_RANK:-}" ]; then
  MEET+=(--node-rank="$NODE_RANK" --master-addr="${HOST:-localhost}" --master-port="${PORT:-29500}")
else
  MEET+=(--rdzv-backend=c10d --rdzv-endpoint="${HOST:-localhost}:${PORT:-29500}" --rdzv-id="${JOB:-zephyr}")
fi

# Without the first option torchrun does not pass SIGUSR1 on. Without the second, which torch 2.11
# does not know, it kills ranks that need more than 30 s to save.
STOP=(--signals-to-handle SIGTERM,SIGINT,SIGUSR1)
if [[ $(torchrun --help) == *--shutdown-timeout* ]]; then STOP+=(--shutdown-timeout 600); fi

exec torchrun "${MEET[@]}" "${STOP[@]}" "$SCRIPT" "$CONFIG" run.dir="$RUN" run.resume=auto "$@"
