#!/usr/bin/env bash
# Builds the images, brings the mesh up with compose, asks the demo model a question over HTTP, scales the MoE
# pool under way, and takes everything down. Needs the right to use a running container engine; root where the
# base image has to be made. What .env says can be overridden from the environment. `make compose-demo` runs it.
set -euo pipefail
cd "$(dirname "$0")/../.."

name=janus-demo
files=()
export MODEL_DIR=${MODEL_DIR:-$PWD/.janus/demo} MODEL_NAME=demo
export MIN_ATTENTION=2 MIN_EXPERTS=3
. deploy/compose/common.sh
[ -f "$MODEL_DIR/config.json" ] || "$python" -m janus_cli model demo "$MODEL_DIR"

# -- the mesh -----------------------------------------------------------------------------------------

ask() {
    echo "> $1"
    "$python" - "$url" "$1" <<'PY'
import json, sys, urllib.request

url, question = sys.argv[1:]
body = {"model": "demo", "temperature": 0, "max_tokens": 24, "messages": [{"role": "user", "content": question}]}
request = urllib.request.Request(
    f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
)
with urllib.request.urlopen(request, timeout=180) as answer:
    text = json.load(answer)["choices"][0]["message"]["content"]
if not text.strip():
    sys.exit("error: the answer is empty")
print(text)
PY
}

moe_members() { [ "$(get "$url/api/state" | "$python" -c 'import json, sys; print(json.load(sys.stdin)["cohort"]["moe"])' 2>/dev/null)" = "$1" ]; }

began=$SECONDS
started=1
run up --detach --no-build --scale attention=2 --scale moe=3
wait_for "$url/health/ready" 180 ready
wait_for "3 MoE workers in the cohort" 60 moe_members 3
echo "the mesh was ready after $((SECONDS - began)) s"
ask "What is the capital of France?"
run ps
echo "scaling the MoE pool to 4"
began=$SECONDS
run up --detach --no-build --scale attention=2 --scale moe=4
wait_for "4 MoE workers in the cohort" 120 moe_members 4
echo "4 MoE workers after $((SECONDS - began)) s"
ask "What is the capital of France?"
run exec -T gateway python -m janus_runtime.healthcheck
echo "done"
