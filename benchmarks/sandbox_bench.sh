#!/usr/bin/env bash
# Starts a private docker daemon, builds the image in it, runs the sandbox benchmarks, stops it. Needs root and runc.
# Arguments go to sandbox_calls.py. The engine is kept in the cache folder.
set -euo pipefail
cd "$(dirname "$0")/.."
engine="${AGENTGYM_CACHE:-$HOME/.cache/agentgym}/newer-engine"
if benchmarks/newer_engine.sh "$engine"; then
  export PATH="$engine/bin:$PATH" DOCKER_CONFIG="$engine/config"
else
  echo "no newer docker engine here: without inspect_ai, which needs 24.0.6"
fi
daemon="$(mktemp -d /var/tmp/agentgym-bench.XXXXXX)"
trap 'scripts/dockerd.sh stop "$daemon"; rm -rf "$daemon"' EXIT
scripts/dockerd.sh start "$daemon"
export DOCKER_HOST="unix://$daemon/docker.sock"
.venv/bin/agentgym sandbox build --offline
.venv/bin/python benchmarks/sandbox_calls.py "$@"
.venv/bin/python benchmarks/sandbox_leaks.py
