"""In-process mesh, real-process mesh and tiny checkpoints for tests."""

from __future__ import annotations

from janus_testing.local_mesh import LocalMesh, MeshError, Service

__all__ = ["LocalMesh", "MeshError", "Service"]
