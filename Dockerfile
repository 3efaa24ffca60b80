# A region's daemon with its PostgreSQL. Built by `make image`, whose context is the program alone.
# BASE: any image with PostgreSQL 15 or newer and an account `postgres`.
ARG BASE=replicator-base:debian-postgresql-15
FROM ${BASE}
COPY replicator /usr/local/bin/replicator
RUN useradd --system --user-group --home-dir /var/lib/replicator --shell /usr/sbin/nologin replicator \
    && mkdir -p /etc/replicator /var/lib/replicator && chown replicator:replicator /var/lib/replicator && chmod 0711 /var/lib/replicator
ENV REPLICATOR_CONFIG=/etc/replicator/regions.toml REPLICATOR_DATA=/var/lib/replicator
# Root becomes the account whose the data directory is, at once: `replicator`; PostgreSQL's processes are the account `postgres`. With
# `--user postgres`, and a volume of that account, there is one account and no boundary between the two: docs/SECURITY.md.
VOLUME /var/lib/replicator
# The region's own daemon answers, however well the cluster is.
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 \
    CMD ["sh", "-c", "replicator status --json --region \"$REPLICATOR_REGION\" | grep -q ."]
# The daemon is process 1: on SIGTERM it stops PostgreSQL cleanly, the primary once its last redo is shipped.
STOPSIGNAL SIGTERM
ENTRYPOINT ["replicator"]
CMD ["--help"]
