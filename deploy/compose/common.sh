# What demo.sh and autoscale.sh have in common: what must be there, and the images. To be sourced in the root of the
# repository, after `name` (of the project) and `files` (compose's -f options) were set.
# shellcheck shell=bash disable=SC2154

fail() { echo "error: $*" >&2; exit 1; }
python=.venv/bin/python

# -- what must be there -------------------------------------------------------------------------------

[ -x "$python" ] || fail "no .venv: run make install first"
command -v docker >/dev/null || fail "docker is not installed. On Debian: apt-get install docker.io docker-compose"
said=$(docker info 2>&1 >/dev/null) || fail "no container engine answers (${said%%$'\n'*}). Start it (systemctl start docker, or dockerd), and be root or in the group docker."
if docker compose version >/dev/null 2>&1; then
    compose=(docker compose)
elif command -v docker-compose >/dev/null; then
    compose=(docker-compose)
else
    fail "neither 'docker compose' nor docker-compose is installed. On Debian: apt-get install docker-compose"
fi
# The legacy builder is the one that every engine has; BuildKit, where it is there, is quicker.
if ! docker buildx version >/dev/null 2>&1; then
    export DOCKER_BUILDKIT=0 COMPOSE_DOCKER_CLI_BUILD=0
fi

project=$name-$$
scratch=$(mktemp -d)
export COMPOSE_PROJECT_NAME=$project
export BASE_IMAGE=${BASE_IMAGE:-python:3.11-slim-bookworm} JANUS_VERSION=${JANUS_VERSION:-0.1.0} PIP_NO_INDEX=1
export API_KEYS=
export PUBLISH_ADDRESS=127.0.0.1 HTTP_PORT=${HTTP_PORT:-18000} GRPC_PORT=${GRPC_PORT:-15051}
JANUS_REVISION=${JANUS_REVISION:-$(git rev-parse HEAD 2>/dev/null || true)}
export JANUS_REVISION
url=http://$PUBLISH_ADDRESS:$HTTP_PORT
started=

run() { (cd deploy/compose && "${compose[@]}" "${files[@]}" --profile cpu "$@"); }

finish() {
    local status=$?
    trap - EXIT INT TERM
    if [ -n "$started" ]; then
        [ "$status" = 0 ] || { run ps || true; run logs --tail 15 || true; }
        echo "taking the mesh down"
        run down --volumes --timeout 30 >"$scratch/down.log" 2>&1 || { cat "$scratch/down.log" >&2; status=1; }
        left=$(docker ps --all --quiet --filter "label=com.docker.compose.project=$project")
        [ -z "$left" ] || { echo "error: containers were left behind: $left" >&2; status=1; }
    fi
    rm -rf "$scratch"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

port_is_free() { "$python" -c 'import socket, sys; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind((sys.argv[1], int(sys.argv[2])))' "$PUBLISH_ADDRESS" "$1" 2>/dev/null; }
port_is_free "$HTTP_PORT" || fail "port $HTTP_PORT of $PUBLISH_ADDRESS is taken: choose another with HTTP_PORT=..."
port_is_free "$GRPC_PORT" || fail "port $GRPC_PORT of $PUBLISH_ADDRESS is taken: choose another with GRPC_PORT=..."

# -- base image, wheels, images -----------------------------------------------------------------------

docker image inspect "$BASE_IMAGE" >/dev/null 2>&1 || docker pull --quiet "$BASE_IMAGE" 2>/dev/null || deploy/compose/base-image.sh "$BASE_IMAGE"
began=$SECONDS
env -u PIP_NO_INDEX nice deploy/compose/wheels.sh --all
echo "wheels: $((SECONDS - began)) s"

quietly() {  # command...: its output only when it fails
    nice "$@" >"$scratch/build.log" 2>&1 || { tail -40 "$scratch/build.log" >&2; fail "the images did not build"; }
}
began=$SECONDS
echo "building the images (minutes the first time)"
if [ -z "${REDIS_IMAGE:-}" ]; then
    REDIS_IMAGE=redis:7-alpine
    if ! docker image inspect "$REDIS_IMAGE" >/dev/null 2>&1 && ! docker pull --quiet "$REDIS_IMAGE" >/dev/null 2>&1; then
        REDIS_IMAGE=janus-redis
        quietly docker build --build-arg BASE_IMAGE="$BASE_IMAGE" --build-arg PIP_NO_INDEX=1 \
            --file deploy/compose/redis.Dockerfile --tag "$REDIS_IMAGE" .
    fi
fi
export REDIS_IMAGE
cd deploy/compose
quietly "${compose[@]}" --profile cpu build
cd ../..
echo "images built in $((SECONDS - began)) s; Redis is $REDIS_IMAGE"
for image in {gateway,scheduler,autoscaler,attention,moe}; do
    docker image inspect --format '{{index .RepoTags 0}} {{.Size}}' "janus-$image:$JANUS_VERSION"
done | awk '{printf "  %-24s %5d MB\n", $1, $2 / 1e6}'
for image in gateway scheduler autoscaler; do
    docker run --rm --network none --entrypoint python "janus-$image:$JANUS_VERSION" -c \
        "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is not None)" \
        || fail "the image janus-$image has torch"
done
echo "no torch in gateway, scheduler, autoscaler"

wait_for() {  # what, seconds, command...
    local what=$1 deadline=$((SECONDS + $2))
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || fail "waited in vain for $what"
        sleep 1
    done
}

get() { "$python" -c 'import sys, urllib.request as u; sys.stdout.buffer.write(u.urlopen(sys.argv[1], timeout=5).read())' "$1" 2>/dev/null; }
ready() { get "$url/health/ready" >/dev/null; }
