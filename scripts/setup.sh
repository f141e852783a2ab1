#!/usr/bin/env bash
# Sets the project up in .venv: pinned Python packages and, as root with apt, the system parts they need.
# DEVICE=cuda takes the CUDA build of torch instead of the CPU one. With --test, also what only the tests need.
set -euo pipefail
cd "$(dirname "$0")/.."
DEVICE="${DEVICE:-cpu}"
TORCH=2.13.0
PYTHON="${PYTHON:-python3}"

"$PYTHON" - <<'PY' || { echo "setup: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2; exit 1; }
import sys
sys.exit(sys.version_info < (3, 11))
PY

python_packages() {
  [ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
  pip=(.venv/bin/python -m pip --disable-pip-version-check -q)
  stamp="$(cat requirements.lock pyproject.toml | sha256sum | cut -d' ' -f1)-$DEVICE"
  if [ "$(cat .venv/stamp 2>/dev/null)" != "$stamp" ]; then
    if [ "$DEVICE" = cuda ]; then
      "${pip[@]}" install --no-compile "torch==$TORCH"
    elif ! "${pip[@]}" install --no-compile "torch==$TORCH+cpu" 2>/dev/null; then
      # the CPU build is not on the default index: uv knows where it is
      "${pip[@]}" install --no-compile uv
      .venv/bin/uv pip install -q --python .venv/bin/python --torch-backend cpu "torch==$TORCH"
    fi
    "${pip[@]}" install --no-compile -c requirements.lock -e ".[dev]"
    .venv/bin/python -m compileall -qq -j 0 .venv/lib || true  # on all cores; some packages hold files of other Pythons
    echo "$stamp" > .venv/stamp
  fi
}

packages=()
command -v java >/dev/null || packages+=(default-jre-headless)
command -v cc >/dev/null || packages+=(build-essential)
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
"$PYTHON" -c 'import sysconfig, os, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
  || packages+=(python3-dev)
apt=no
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt=yes
if [ "${1:-}" = --test ]; then
  extra=()
  command -v chromium >/dev/null || extra+=(chromium)
  command -v dockerd >/dev/null && command -v docker >/dev/null || extra+=(docker.io)
  command -v bwrap >/dev/null || extra+=(bubblewrap)
  if [ "$(id -u)" = 0 ]; then
    packages+=("${extra[@]}")
  elif [ "${#extra[@]}" -gt 0 ]; then
    echo "setup: the tests that need one of these will skip: ${extra[*]}"
  fi
fi
if [ "${#packages[@]}" -gt 0 ] && [ $apt = no ]; then
  echo "setup: install these first, then run make setup again:" >&2
  echo "  sudo apt-get install ${packages[*]}" >&2
  exit 1
fi
python=
case " ${packages[*]-} " in
  *" build-essential "* | *" python3-"*) ;;  # Python's packages need them
  *)
    set -m  # a process group of its own, to be ended as a whole
    python_packages &
    python=$!
    set +m
    trap 'kill -- "-$python" 2>/dev/null || true' EXIT  # its own failure would become the script's
    ;;
esac
lists=/var/lib/apt/lists/partial  # apt-get update touches it
if [ "${#packages[@]}" -gt 0 ]; then
  apt-get update -q
  # Debian 13 has the client in a package of its own
  case " ${packages[*]} " in *" docker.io "*) ! apt-cache show docker-cli >/dev/null 2>&1 || packages+=(docker-cli) ;; esac
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${packages[@]}"
elif [ "${1:-}" = --test ] && [ $apt = yes ] && [ -z "$(find "$lists" -maxdepth 0 -mtime -1 2>/dev/null)" ]; then
  apt-get update -q  # the sandbox image is made of packages that must still be there
fi
shell=chromium-headless-shell  # not every distribution has it; MiniWoB then runs in chromium
if [ "${1:-}" = --test ] && [ $apt = yes ] && ! command -v $shell >/dev/null; then
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $shell || echo "setup: there is no $shell here"
fi
if [ -n "$python" ]; then wait "$python"; else python_packages; fi
echo "setup: ready (.venv, torch for $DEVICE)"
