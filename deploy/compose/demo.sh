#!/usr/bin/env bash
# Builds the images, brings the mesh up with compose, asks the demo model a question over HTTP, scales the MoE
# pool under way, and takes everything down. Needs root (or the docker group) and a running engine.
set -euo pipefail
cd "$(dirname "$0")/../.."

fail() { echo "error: $*" >&2; exit 1; }

docker info >/dev/null 2>&1 || fail "no container engine answers. Install one (apt-get install docker.io docker-compose), start it (dockerd), and be root or in the docker group."
if docker compose version >/dev/null 2>&1; then
    compose=(docker compose)
elif command -v docker-compose >/dev/null; then
    compose=(docker-compose)
else
    fail "neither 'docker compose' nor docker-compose is installed"
fi

base=python:3.11-slim-bookworm
export PIP_NO_INDEX=1 DOCKER_BUILDKIT=0 COMPOSE_DOCKER_CLI_BUILD=0 MIN_ATTENTION=2 MIN_EXPERTS=3 HTTP_PORT=${HTTP_PORT:-18000} GRPC_PORT=${GRPC_PORT:-15051}
project=janus-demo-$$
run() { "${compose[@]}" --project-directory deploy/compose --file deploy/compose/compose.yaml --env-file deploy/compose/.env --project-name "$project" --profile cpu "$@"; }
url=http://127.0.0.1:$HTTP_PORT

[ -f .janus/demo/janus-demo.json ] || .venv/bin/python -m janus_cli model demo .janus/demo
docker image inspect "$base" >/dev/null 2>&1 || docker pull "$base" >/dev/null 2>&1 || deploy/compose/base-image.sh "$base"
nice env -u PIP_NO_INDEX deploy/compose/wheels.sh --all

began=$SECONDS
echo "building the images"
nice "${compose[@]}" --project-directory deploy/compose --file deploy/compose/compose.yaml --env-file deploy/compose/.env --profile cpu build >/tmp/janus-build-$$.log 2>&1 \
    || { tail -40 "/tmp/janus-build-$$.log" >&2; fail "the images did not build"; }
rm -f "/tmp/janus-build-$$.log"
echo "images built in $((SECONDS - began)) s"
docker images --format 'table {{.Repository}}\t{{.Size}}' | grep -E '^(REPOSITORY|janus-)' || true
for role in gateway scheduler autoscaler; do
    docker run --rm --network none --entrypoint python "janus-$role:0.1.0" -c \
        "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is not None)" \
        || fail "the $role image has torch"
done
echo "no torch in gateway, scheduler, autoscaler"

finish() {
    local status=$?
    [ "$status" = 0 ] || { run ps || true; run logs --tail 15 || true; }
    run down --volumes --timeout 20 >/dev/null 2>&1 || true
    exit "$status"
}
trap finish EXIT

ask() {
    .venv/bin/python - "$url" "$1" <<'PY'
import json, sys, urllib.request

url, question = sys.argv[1:]
body = {"model": "demo", "temperature": 0, "max_tokens": 24, "messages": [{"role": "user", "content": question}]}
request = urllib.request.Request(
    f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
)
with urllib.request.urlopen(request, timeout=180) as answer:
    print(">", question)
    print(json.load(answer)["choices"][0]["message"]["content"])
PY
}

wait_for() {  # what, seconds, command...
    local what=$1 deadline=$((SECONDS + $2))
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || fail "waited in vain for $what"
        sleep 1
    done
}

ready() { curl -fsS -o /dev/null --max-time 5 "$url/health/ready" 2>/dev/null; }
moe_members() { [ "$(curl -fsS --max-time 5 "$url/api/state" | .venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)["cohort"]["moe"])')" = "$1" ]; }

began=$SECONDS
run up --detach --no-build --scale attention=2 --scale moe=3
wait_for "$url/health/ready" 180 ready
echo "the mesh was ready after $((SECONDS - began)) s"
wait_for "3 MoE workers in the cohort" 60 moe_members 3
ask "What is the capital of France?"
run ps
echo "scaling the MoE pool to 4"
run up --detach --no-build --scale attention=2 --scale moe=4
wait_for "4 MoE workers in the cohort" 120 moe_members 4
ask "Name a colour of the rainbow."
echo "done"
