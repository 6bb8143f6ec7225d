#!/bin/sh
# Installs the tools that some tests want and no Python package brings, where they can be had.
#   tools/optional.sh DIRECTORY
# What cannot be installed is said here, and again by each test that skips for want of it.
set -u
bin=$(cd "$1" && pwd)

if [ -x "$bin/grpcurl" ]; then
    :
elif ! command -v go >/dev/null; then
    echo 'optional: no grpcurl: Go is not installed' >&2
elif ! GOBIN="$bin" go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3 2>"$bin/grpcurl.log"; then
    echo "optional: no grpcurl: go install failed: $(tail -n 1 "$bin/grpcurl.log")" >&2
fi
