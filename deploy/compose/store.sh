#!/bin/sh
# Runs a Valkey: store.sh OWN_NAME [PRIMARY]. With the name of a primary it starts as its replica.
# Its configuration is written here because the password must be neither in an image nor on a command line. Valkey
# rewrites it when Sentinel changes its role, so what is there already is kept.
set -eu
name=$1
primary=${2-}
directory=${STORE_DIRECTORY:-/data}
secret=${STORE_PASSWORD_FILE:-/run/secrets/store-password}
umask 077
if [ ! -f "$directory/store.conf" ]; then
    password=$(cat "$secret")
    cat >"$directory/store.conf" <<END
dir $directory
port ${STORE_PORT:-6379}
requirepass $password
primaryauth $password
replica-announce-ip $name
maxmemory-policy noeviction
appendonly yes
END
    [ -z "$primary" ] || echo "replicaof $primary ${STORE_PRIMARY_PORT:-6379}" >>"$directory/store.conf"
fi
exec "${STORE_SERVER:-valkey-server}" "$directory/store.conf"
