# Where the nodes agree on who is the primary: docker build -f deploy/etcd.Dockerfile -t taskqueue-etcd .
FROM debian:bookworm-slim
RUN apt-get update \
  && apt-get install --yes --no-install-recommends etcd-server etcd-client \
  && rm -rf /var/lib/apt/lists/* \
  && useradd --uid 10002 --no-create-home --shell /usr/sbin/nologin keeper \
  && install -d -o keeper -m 0700 /data
USER 10002
ENV ETCDCTL_API=3
EXPOSE 2379 2380
ENTRYPOINT ["etcd"]
