#!/usr/bin/env bash
# The autoscaler acting on real containers: brings 1 x 1 up with compose, sends a load that it does not bear, and checks
# that workers are added and serve, that they go again when the load has gone, and that no answer was lost or changed.
# Workers wait out what devices of their own would take (JANUS_*_EMULATED_*). It needs what demo.sh needs, and gives the
# autoscaler the engine's socket. `make compose-autoscale` runs it. Without building images it takes 5 minutes, at most 12.
set -euo pipefail
cd "$(dirname "$0")/../.."

name=janus-scale
files=()
export MIN_ATTENTION=1 MIN_EXPERTS=1 MODEL_NAME=tiny TPOT_MS=${TPOT_MS:-250} SHARED_CORES=0
. deploy/compose/common.sh
DOCKER_GROUP=$(stat -c %g "${DOCKER_SOCKET:-/var/run/docker.sock}")
export DOCKER_GROUP MODEL_DIR=$scratch/model
files=(-f compose.yaml -f compose.autoscale.yaml -f "$scratch/devices.yaml")
"$python" - "$MODEL_DIR" 2>"$scratch/model.log" <<'PY' || { cat "$scratch/model.log" >&2; fail "no model"; }
import sys
from janus_models.tiny import make_tiny

make_tiny(sys.argv[1], family="qwen3_moe", seed=11, num_experts=32)
PY
chmod -R a+rX "$MODEL_DIR"
cat >"$scratch/devices.yaml" <<'YAML'
services:
  attention:
    environment: {JANUS_ATTENTION_EMULATED_TOKEN_US: "5000"}
  moe:
    environment: {JANUS_MOE_EMULATED_EXPERT_US: "6000"}
  scheduler:
    environment: {JANUS_SCHEDULER_REBALANCE_S: "0"}
  autoscaler:
    environment:
      JANUS_AUTOSCALER_INTERVAL_S: "8"
      JANUS_AUTOSCALER_WINDOW_S: "16"
      JANUS_AUTOSCALER_HOLD_S: "24"
      JANUS_AUTOSCALER_DRAIN_BACKLOG_S: "15"
      JANUS_AUTOSCALER_MAX_WORKERS: "3"
YAML

# -- the mesh -----------------------------------------------------------------------------------------

began=$SECONDS
started=1
run up --detach --no-build
wait_for "$url/health/ready" 180 ready
echo "1 x 1 was ready after $((SECONDS - began)) s"
timeout --kill-after=30 480 "$python" deploy/compose/autoscale_check.py \
    --project "$project" --http "$PUBLISH_ADDRESS:$HTTP_PORT" --grpc "$PUBLISH_ADDRESS:$GRPC_PORT" \
    || { run logs --no-color autoscaler 2>/dev/null | tail -40; fail "the autoscaler did not do what it should"; }
run logs --no-color autoscaler 2>/dev/null | grep -e '->' | tail -12 || true
echo "done"
