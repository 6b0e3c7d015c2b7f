# PostgreSQL and the Patroni that keeps it: docker build -f deploy/postgres.Dockerfile -t taskqueue-postgres .
FROM postgres:18-bookworm
RUN apt-get update \
  && apt-get install --yes --no-install-recommends python3-venv \
  && rm -rf /var/lib/apt/lists/* \
  && python3 -m venv /opt/patroni \
  && /opt/patroni/bin/pip install --no-cache-dir 'patroni[etcd3,psycopg3]==4.1.5' 'psycopg[binary]' \
  && install -d -o postgres -m 0700 /data
COPY deploy/patroni.yml deploy/make_database.sh /etc/patroni/
USER postgres
EXPOSE 5432 8008
ENTRYPOINT ["/opt/patroni/bin/patroni", "/etc/patroni/patroni.yml"]
