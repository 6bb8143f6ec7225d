#!/bin/sh
# Runs a Sentinel: sentinel.sh PRIMARY. It writes its own configuration, because Sentinel changes it as it goes; after a
# restart it asks the other Sentinels again. A failover takes two of them.
set -eu
primary=$1
directory=${STORE_DIRECTORY:-/tmp}
secret=${STORE_PASSWORD_FILE:-/run/secrets/store-password}
umask 077
cat >"$directory/sentinel.conf" <<END
dir $directory
port ${SENTINEL_PORT:-26379}
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel monitor catraca $primary ${STORE_PORT:-6379} 2
sentinel auth-pass catraca $(cat "$secret")
sentinel down-after-milliseconds catraca 3000
sentinel failover-timeout catraca 10000
END
exec "${STORE_SERVER:-valkey-server}" "$directory/sentinel.conf" --sentinel
