#!/usr/bin/env bash
# A private Docker daemon in a folder of its own: no bridge, no firewall rules, nothing shared with another daemon.
#   scripts/dockerd.sh start DIR    then: export DOCKER_HOST=unix://DIR/docker.sock
#   scripts/dockerd.sh stop DIR     removes its containers, ends it, and waits until it is gone; images stay in DIR
set -euo pipefail
case "$#:${1:-}" in
  2:start) mkdir -p "$2" ;;
  2:stop) [ -d "$2" ] || exit 0 ;;
  *) echo "usage: $0 start DIR | stop DIR" >&2; exit 2 ;;
esac
dir="$(cd "$2" && pwd)"
export DOCKER_HOST="unix://$dir/docker.sock"
unset DOCKER_CONTEXT DOCKER_TLS_VERIFY

answers() { timeout -k 1 5 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

alive() {  # whether a process is a daemon: a killed one may stay a zombie, and its number may be used again
  case "$(ps -o stat=,comm= -p "${1:-0}" 2>/dev/null)" in Z*) return 1 ;; *dockerd | *containerd) return 0 ;; *) return 1 ;; esac
}

start() {
  [ "$(id -u)" = 0 ] || { echo "dockerd: must be started as root" >&2; return 1; }
  local program
  for program in dockerd docker; do
    command -v "$program" >/dev/null || { echo "dockerd: no $program: apt-get install docker.io" >&2; return 1; }
  done
  answers && return
  local file
  for file in "$dir/docker.pid" "$dir/exec/containerd/containerd.pid"; do
    alive "$(cat "$file" 2>/dev/null)" || rm -f "$file"
  done
  if [ ! -f "$dir/docker.pid" ]; then
    setsid nohup dockerd --host "$DOCKER_HOST" --pidfile "$dir/docker.pid" --data-root "$dir/data" \
      --exec-root "$dir/exec" --bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false \
      --live-restore --log-level=warn >"$dir/log" 2>&1 </dev/null &
    local pid=$!
  fi
  for _ in $(seq 300); do
    answers && return
    [ -z "${pid:-}" ] || kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  echo "dockerd: no answer; the end of $dir/log:" >&2
  tail -n 5 "$dir/log" >&2
  [ -z "${pid:-}" ] || kill "$pid" 2>/dev/null || true
  return 1
}

stop() {
  if ! alive "$(cat "$dir/docker.pid" 2>/dev/null)"; then
    [ -n "$(ls -A "$dir/data/containers" 2>/dev/null)" ] || return 0
    echo "dockerd: it ended before its containers did: starting it once more to remove them" >&2
  fi
  start
  local ids pid
  ids="$(docker ps -aq)"
  [ -z "$ids" ] || docker rm -f $ids >/dev/null
  pid="$(cat "$dir/docker.pid")"
  kill "$pid"
  while alive "$pid"; do sleep 0.05; done
  grep -o " $dir/[^ ]*" /proc/mounts | xargs -r umount -l || true
}

"$1"
