#!/usr/bin/env bash
# Makes the virtual environment from requirements.lock, every package checked against its hash.
set -euo pipefail
venv=$1

"$PYTHON" - <<'CHECK' || { echo "Python 3.11 or newer is needed; name it with PYTHON=…" >&2; exit 2; }
import sys
raise SystemExit(sys.version_info < (3, 11))
CHECK

if ! "$PYTHON" -c 'import ensurepip' 2>/dev/null; then
  # Debian ships it apart from Python itself.
  if [ "$(id -u)" = 0 ]; then
    apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null
  else
    echo "python3-venv is missing; install it: sudo apt-get install python3-venv" >&2
    exit 2
  fi
fi

[ -x "$venv/bin/python" ] || "$PYTHON" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --require-hashes -r requirements.lock
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation -e .
