#!/usr/bin/env bash
# A base image for a machine that can pull none: Debian bookworm with Python 3.11, by debootstrap, from the
# mirror that this machine's apt uses. Root only. Usage: base-image.sh [TAG]
set -euo pipefail

tag=${1:-python:3.11-slim-bookworm}
command -v debootstrap >/dev/null || { echo "error: debootstrap is not installed: apt-get install debootstrap" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "error: debootstrap needs root" >&2; exit 1; }

mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' | awk '$2 == "bookworm" {print $1; exit}')
[ -n "$mirror" ] || { echo "error: apt names no bookworm mirror; run apt-get update, or docker pull $tag elsewhere" >&2; exit 1; }

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
echo "building $tag by debootstrap (about 80 s)"
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$folder" "$mirror" >"$folder.log" 2>&1 \
    || { tail -20 "$folder.log" >&2; exit 1; }
rm -rf "$folder"/var/cache/apt/archives/*.deb "$folder"/var/lib/apt/lists/* "$folder.log"
tar -C "$folder" -c . | docker import --change 'CMD ["python3"]' - "$tag" >/dev/null
echo "imported $tag"
