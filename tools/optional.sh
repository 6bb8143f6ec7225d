#!/bin/sh
# Installs the tools that some tests want and no Python package brings, where they can be had.
#   tools/optional.sh DIRECTORY
# What cannot be installed is said here, and again by each test that skips for want of it.
set -u
bin=$(cd "$1" && pwd)

# install NAME PACKAGE@VERSION
install() {
    if [ -x "$bin/$1" ]; then
        :
    elif ! command -v go >/dev/null; then
        echo "optional: no $1: Go is not installed" >&2
    elif ! GOBIN="$bin" go install "$2" 2>"$bin/$1.log"; then
        echo "optional: no $1: go install failed: $(tail -n 1 "$bin/$1.log")" >&2
    fi
}

install grpcurl github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3
install h2spec github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible
install helm helm.sh/helm/v3/cmd/helm@v3.19.5
