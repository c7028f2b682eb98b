#!/usr/bin/env bash
# A base image for a machine that can pull none: Debian bookworm with Python 3.11, by debootstrap, from the
# mirror that this machine's apt uses. Root only. Usage: base-image.sh [TAG]
set -euo pipefail

tag=${1:-python:3.11-slim-bookworm}
command -v debootstrap >/dev/null || { echo "error: debootstrap is not installed: apt-get install debootstrap" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "error: debootstrap needs root" >&2; exit 1; }

mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' | awk '$2 == "bookworm" {print $1; exit}')
[ -n "$mirror" ] || { echo "error: apt names no bookworm mirror: run apt-get update, or docker pull $tag where you can and docker load it here" >&2; exit 1; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
root=$scratch/root
began=$SECONDS
echo "building $tag by debootstrap (about 80 s)"
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" "$mirror" >"$scratch/log" 2>&1 \
    || { tail -20 "$scratch/log" >&2; echo "error: debootstrap failed; its last lines are above" >&2; exit 1; }
# What slim images leave out too: package caches and lists, documentation, translations. And nothing of this
# machine's network goes into the image.
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/usr/share/{doc,man,info,locale}/* \
    "$root"/etc/apt/sources.list "$root"/etc/resolv.conf "$root"/etc/hostname
tar -C "$root" -c . | docker import --change 'CMD ["python3"]' - "$tag" >/dev/null
echo "imported $tag: $(docker image inspect --format '{{.Size}}' "$tag" | awk '{printf "%d MB", $1 / 1e6}'), $((SECONDS - began)) s"
