#!/bin/sh
# Makes the brokers' role and database. Patroni runs it once, when the cluster is made, with the
# address of the new server as its argument; TASKQUEUE_PASSWORD comes from the environment.
set -eu
psql "$1" --no-psqlrc --set ON_ERROR_STOP=1 --set password="$TASKQUEUE_PASSWORD" <<'SQL'
CREATE ROLE taskqueue LOGIN PASSWORD :'password';
GRANT pg_read_all_stats TO taskqueue;  -- to see which standbys confirm commits
CREATE DATABASE taskqueue OWNER taskqueue;
SQL
