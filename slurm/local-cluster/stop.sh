#!/usr/bin/env bash
# Stop the Slurm that start.sh started, end what ran in it, and remove its folder: stop.sh [FOLDER]
set -euo pipefail
folder=$(realpath -m "${1:-/tmp/seer-pipe-slurm-$(id -un)}")
export SLURM_CONF=$folder/slurm.conf
[ -e "$SLURM_CONF" ] || exit 0

if [ -n "$(timeout 10 squeue --noheader --format=%i 2>/dev/null)" ]; then
  timeout 10 scancel --quiet --user="$(id -un)" 2>/dev/null || true
  for _ in $(seq 60); do
    [ -n "$(timeout 10 squeue --noheader --format=%i 2>/dev/null)" ] || break
    sleep 0.5
  done
fi

pids=$(cat "$folder"/slurmd-*.pid "$folder"/slurmctld.pid "$folder"/munged.pid 2>/dev/null || true)
for pid in $pids; do kill "$pid" 2>/dev/null || true; done
for _ in $(seq 40); do
  left=""
  for pid in $pids; do ! kill -0 "$pid" 2>/dev/null || left="$left $pid"; done
  [ -n "$left" ] || break
  sleep 0.25
done
for pid in $left; do kill -KILL "$pid" 2>/dev/null || true; done
# A step's keeper outlives its slurmd; each has its node's folder open.
for keeper in $(pgrep slurmstepd || true); do
  ! ls -l "/proc/$keeper/fd" 2>/dev/null | grep -q "$folder/" || kill -KILL "$keeper" 2>/dev/null || true
done
rm -rf "$folder"
