"""A cluster with high availability on one machine: etcd, Patroni, PostgreSQL, brokers, workers."""
