# One image for all of Airflow's components and the `fermion` command. The base can be any image with Python 3.11 to 3.13,
# with git or with apt-get to install it. Layers go from what changes rarely to what changes often.
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

RUN command -v git >/dev/null \
 || { apt-get update && apt-get install -y --no-install-recommends git openssh-client && rm -rf /var/lib/apt/lists/*; }

# Group 0, so that a platform that picks its own user ids can run it too.
RUN echo 'fermion:x:50000:0:Fermion:/var/lib/fermion:/bin/sh' >>/etc/passwd \
 && mkdir -p /var/lib/fermion && chown 50000:0 /var/lib/fermion && chmod 770 /var/lib/fermion

WORKDIR /opt/fermion
# The lock file's own uv, checked by its hashes, installs the rest. No downloads stay in the layer.
COPY requirements.lock ./
RUN { python -m pip --version || python -m ensurepip; } >/dev/null 2>&1 \
 && sed -n '/^uv==/,/[^\\]$/p' requirements.lock >/tmp/uv.lock \
 && python -m pip install -q --no-cache-dir --disable-pip-version-check --root-user-action=ignore --require-hashes -r /tmp/uv.lock \
 && uv pip install -q --system --no-cache --compile-bytecode --require-hashes -r requirements.lock \
 && rm /tmp/uv.lock

COPY include/ include/
COPY plugins/ plugins/
COPY dags/ dags/
COPY config/ config/
RUN python -m compileall -q include plugins dags \
 && ln -s /opt/fermion/config/docker/fermion.sh /usr/local/bin/fermion

USER 50000:0
ENV FERMION_ROOT=/opt/fermion \
    FERMION_STATE=/var/lib/fermion \
    HOME=/var/lib/fermion \
    AIRFLOW_HOME=/var/lib/fermion/airflow \
    AIRFLOW_CONFIG=/opt/fermion/config/airflow.cfg \
    PYTHONPATH=/opt/fermion/include:/opt/fermion/plugins \
    PYTHONUNBUFFERED=1 \
    PYTHONWARNINGS="ignore::DeprecationWarning,ignore:Using \`httpx\` with" \
    LANG=C.UTF-8
VOLUME /var/lib/fermion
ENTRYPOINT ["/opt/fermion/config/docker/start.sh"]
CMD ["airflow", "version"]
