#!/usr/bin/env bash
# Provides what the tests and examples/ha run and pip cannot install: redis-cli, redis-benchmark,
# etcd, pgbouncer and PostgreSQL 15. Takes those of this machine, or else Debian's, fetched into a
# folder of their own. Needs no root and installs nothing into the system.
set -euo pipefail
tools=$(mkdir -p "$1" && cd "$1" && pwd)
mkdir -p "$tools/bin"
files=$tools/files
state=$tools/apt

wanted=()
programs=()
need() { # PROGRAM PACKAGE...: fetch these packages unless there is such a program
  local program=$1
  command -v "$program" >/dev/null || [ -x "$tools/bin/$program" ] || {
    wanted+=("${@:2}")
    programs+=("$program")
  }
}

need redis-cli redis-tools libjemalloc2 liblzf1 liblua5.1-0 lua-bitop lua-cjson libatomic1 \
  libhiredis0.14
need redis-benchmark redis-tools
need etcd etcd-server
need pgbouncer pgbouncer libc-ares2 libevent-2.1-7

postgresql=$tools/postgresql-15
if [ -x /usr/lib/postgresql/15/bin/postgres ] && [ ! -e "$postgresql" ]; then
  ln -sfn /usr/lib/postgresql/15 "$postgresql"
elif [ ! -x "$postgresql/bin/postgres" ]; then
  rm -rf "$postgresql" # or a link that leads nowhere any more
  wanted+=(postgresql-15 postgresql-client-15 libpq5 libicu72 libxml2 libxslt1.1 libldap-2.5-0
    libsasl2-2 libgssapi-krb5-2 libkrb5-3 libkrb5support0 libk5crypto3 libkeyutils1 libreadline8)
fi
[ ${#wanted[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
  echo "missing here, install them your system's way: ${wanted[*]}" >&2
  exit 2
fi
mkdir -p "$state/lists/partial" "$state/archives/partial"
apt=(apt-get -qq -o "Dir::State::lists=$state/lists" -o "Dir::Cache=$state"
  -o "Dir::Cache::archives=$state/archives" -o Debug::NoLocking=1 -o APT::Sandbox::User=)
"${apt[@]}" update

missing=()
for package in "${wanted[@]}"; do # a library that the system has would only come in the way
  [[ $package == lib* ]] && dpkg-query -W "$package" >/dev/null 2>&1 || missing+=("$package")
done
(cd "$state/archives" && "${apt[@]}" download "${missing[@]}" 2>/dev/null ||
  for package in "${missing[@]}"; do # one that this release does not have must not stop the rest
    "${apt[@]}" download "$package" 2>/dev/null || true
  done)
for package in "$state"/archives/*.deb; do
  dpkg-deb -x "$package" "$files"
done
libraries=$(find "$files" -regex '.*\.so\(\.[0-9.]*\)?' -not -path '*/postgresql/*' -printf '%h\n' |
  sort -u | paste -sd:)

wrap() { # PROGRAM PLACE: let it find its libraries
  printf '#!/bin/sh\nLD_LIBRARY_PATH="%s${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec "%s" "$@"\n' \
    "$libraries" "$1" >"$2"
  chmod +x "$2"
}
for program in "${programs[@]}"; do
  for place in "$files/usr/bin/$program" "$files/usr/sbin/$program"; do
    [ ! -x "$place" ] || wrap "$place" "$tools/bin/$program"
  done
done
if [ -x "$files/usr/lib/postgresql/15/bin/postgres" ]; then
  mkdir -p "$postgresql/bin"
  for place in "$files"/usr/lib/postgresql/15/bin/*; do
    wrap "$place" "$postgresql/bin/${place##*/}"
  done
  # Without its compiler for queries it needs no LLVM, which is larger than all the rest.
  rm -rf "$files"/usr/lib/postgresql/15/lib/{bitcode,llvmjit*}
fi
rm -rf "$state"

for program in "${programs[@]}"; do
  [ -x "$tools/bin/$program" ] || echo "no $program in this release of Debian" >&2
done
