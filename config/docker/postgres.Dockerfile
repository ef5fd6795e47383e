# The database server. The base can be any image with Postgres' programs on the PATH and an account `postgres`.
ARG POSTGRES_BASE=postgres:18-bookworm
FROM ${POSTGRES_BASE}
COPY config/docker/start-postgres.sh /usr/local/bin/start-postgres.sh
RUN mkdir -p /var/lib/fermion-postgres && chown postgres /var/lib/fermion-postgres && chmod 700 /var/lib/fermion-postgres
USER postgres
VOLUME /var/lib/fermion-postgres
# Fast shutdown: do not wait for clients to leave.
STOPSIGNAL SIGINT
ENTRYPOINT ["/usr/local/bin/start-postgres.sh"]
CMD []
