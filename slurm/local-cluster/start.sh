#!/usr/bin/env bash
# Start a real Slurm of a few virtual nodes on this machine: start.sh [FOLDER [NODES]]
#
#     eval "$(slurm/local-cluster/start.sh)"      # SLURM_CONF is set: sinfo, sbatch and seer-pipe launch find it
#     slurm/local-cluster/stop.sh
#
# All it keeps is in FOLDER (by default /tmp/seer-pipe-slurm-USER). Starting what runs already changes nothing.
# CPUS (of a node, 16; more than there are is fine) and NODE_TIMEOUT (seconds until a silent node is down, 30) are read
# from the environment.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(realpath -m "${1:-/tmp/seer-pipe-slurm-$(id -un)}")
nodes=${2:-2}
export SLURM_CONF=$folder/slurm.conf PATH=$PATH:/usr/sbin:/sbin
for tool in munged slurmctld slurmd; do
  command -v $tool >/dev/null || { echo "error: no $tool: run $here/install.sh first" >&2; exit 2; }
done

alive() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

free_port() { # the first of so many ports in a row that nobody listens to: free_port COUNT
  local first port
  for first in $(shuf -i 20000-30000 -n 100); do
    for ((port = first; port < first + $1; port++)); do
      ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || continue 2
    done
    echo "$first"
    return
  done
  echo "error: no free ports" >&2
  return 1
}

if [ ! -e "$SLURM_CONF" ]; then
  mkdir -p "$folder"/state
  for ((node = 1; node <= nodes; node++)); do mkdir -p "$folder/spool-n$node"; done
  (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
  host=$(hostname -s) port=$(free_port $((nodes + 1)))
  sed -e "s|@FOLDER@|$folder|; s|@HOST@|$host|; s|@USER@|$(id -un)|; s|@PORT@|$port|; s|@NODES@|$nodes|" \
    -e "s|@FIRST@|$((port + 1))|; s|@LAST@|$((port + nodes))|; s|@CPUS@|${CPUS:-16}|" \
    -e "s|@NODE_TIMEOUT@|${NODE_TIMEOUT:-30}|" "$here/slurm.conf.in" >"$SLURM_CONF.new"
  mv "$SLURM_CONF.new" "$SLURM_CONF"
fi

# Daemons run without our output and our terminal.
if ! alive "$folder/munged.pid"; then
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge.seed" >/dev/null 2>&1 </dev/null
fi
alive "$folder/slurmctld.pid" || slurmctld >/dev/null 2>&1 </dev/null
for node in $(sed -n 's/^NodeName=n\[1-\([0-9]*\)\].*/\1/p' "$SLURM_CONF" | xargs seq 1); do
  alive "$folder/slurmd-n$node.pid" || slurmd -N "n$node" >/dev/null 2>&1 </dev/null
done

for _ in $(seq 120); do
  if idle=$(sinfo --noheader --partition=main --format=%T 2>/dev/null) && [ -n "$idle" ] &&
    ! grep -qvE '^(idle|mixed|allocated|completing)$' <<<"$idle"; then
    echo "export SLURM_CONF=$SLURM_CONF"
    exit 0
  fi
  sleep 0.5
done
echo "error: Slurm does not answer, or a node is not ready; see $folder/*.log" >&2
sinfo --Node --long >&2 || true
exit 1
