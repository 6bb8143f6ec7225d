#!/bin/sh
# Regenerates client/catraca/v1 from protos/, or with --check fails if that would change anything.
#   tools/stubs.sh ENVIRONMENT [--check]     ENVIRONMENT: where requirements/proto.txt is installed
set -eu
cd "$(dirname "$0")/.."
bin=$1/bin
out=client/catraca/v1
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT

PATH="$bin:$PATH" "$bin/python" -m grpc_tools.protoc --proto_path=protos \
    --python_out="$fresh" --grpc_python_out="$fresh" --mypy_out=quiet:"$fresh" --mypy_grpc_out=quiet:"$fresh" \
    --descriptor_set_out="$fresh/descriptors.binpb" --include_source_info \
    protos/catraca/v1/*.proto
# Reflection answers with these, so that `grpcurl describe` shows the comments: the stubs have none.
mv "$fresh/descriptors.binpb" "$fresh/catraca/v1/"
printf '"""Generated from protos/catraca/v1 by `make proto`. Do not edit."""\n' >"$fresh/catraca/v1/__init__.py"

# An error_reason_pb2_grpc.py without a service in it would be an empty promise.
for stub in "$fresh"/catraca/v1/*_pb2_grpc.py; do
    grep -q 'Servicer' "$stub" || rm "$stub" "${stub}i"
done

if [ "${2-}" = --check ]; then
    diff -ru --exclude=__pycache__ "$out" "$fresh/catraca/v1" || {
        echo 'client/catraca/v1 is not what protos/ generates: run `make proto` and commit' >&2
        exit 1
    }
else
    rm -rf "$out"
    cp -R "$fresh/catraca/v1" "$out"
fi
