#!/usr/bin/env bash
# Provides redis-cli and redis-benchmark for the tests: those of this machine, or Debian's,
# fetched into a folder of their own. Needs no root and installs nothing into the system.
set -euo pipefail
tools=$(mkdir -p "$1" && cd "$1" && pwd)
mkdir -p "$tools/bin"

if command -v redis-cli >/dev/null && command -v redis-benchmark >/dev/null; then
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  echo "redis-cli and redis-benchmark are missing; install your system's redis tools" >&2
  exit 2
fi

state=$tools/apt
mkdir -p "$state/lists/partial" "$state/archives/partial"
apt=(apt-get -qq -o "Dir::State::lists=$state/lists" -o "Dir::Cache=$state"
  -o "Dir::Cache::archives=$state/archives" -o Debug::NoLocking=1 -o APT::Sandbox::User=)
"${apt[@]}" update
(cd "$state/archives" && "${apt[@]}" download redis-tools libjemalloc2 liblzf1 liblua5.1-0 \
  liblua5.1-bitop0 liblua5.1-cjson0 libatomic1 libhiredis0.14 2>/dev/null ||
  for package in redis-tools libjemalloc2 liblzf1 libatomic1 libhiredis0.14; do
    "${apt[@]}" download "$package" || true
  done)
for package in "$state"/archives/*.deb; do
  dpkg-deb -x "$package" "$tools/files"
done

libraries=$(find "$tools/files" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
for tool in redis-cli redis-benchmark; do
  printf '#!/bin/sh\nLD_LIBRARY_PATH="%s:$LD_LIBRARY_PATH" exec "%s" "$@"\n' \
    "$libraries" "$tools/files/usr/bin/$tool" >"$tools/bin/$tool"
  chmod +x "$tools/bin/$tool"
done
"$tools/bin/redis-cli" --version
rm -rf "$state"
