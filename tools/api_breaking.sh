#!/bin/sh
# Fails if protos/ breaks the API of main, as buf's FILE rules see it: other people's clients are written against it.
#   tools/api_breaking.sh BUF
set -eu
cd "$(dirname "$0")/.."
main=$(git rev-parse --quiet --verify origin/main || git rev-parse --quiet --verify main || true)
if [ -z "$main" ] || [ "$main" = "$(git rev-parse HEAD)" ]; then
    # On main itself: against the API as it was before its last change.
    main=$(git rev-list --max-count=1 --skip=1 HEAD -- protos)
fi
if [ -z "$main" ] || ! git cat-file -e "$main:protos" 2>/dev/null; then
    echo 'api_breaking: no earlier API in this checkout to compare with' >&2
    exit 0
fi
exec "$1" breaking --against ".git#ref=$main"
