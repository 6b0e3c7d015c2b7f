#!/usr/bin/env bash
# Makes the Python code of the gRPC API from proto/; with --check, says whether it is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${VENV:-.venv}/bin
target=src/taskqueue/doors/grpc
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT

"$bin/python" -m grpc_tools.protoc --proto_path=proto \
  --plugin=protoc-gen-mypy="$bin/protoc-gen-mypy" \
  --python_out="$made" --mypy_out="$made" taskqueue/taskqueue.proto

for name in taskqueue_pb2.py taskqueue_pb2.pyi; do
  if [[ ${1:-} == --check ]]; then
    cmp "$made/taskqueue/$name" "$target/$name" || {
      echo "$target/$name is not what proto/ says; run scripts/generate_proto.sh" >&2
      exit 1
    }
  else
    cp "$made/taskqueue/$name" "$target/$name"
  fi
done
