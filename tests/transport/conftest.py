"""Fixtures of the transport tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from transport_mesh import KINDS, Mesh, make_mesh


@pytest.fixture
def new_mesh() -> Iterator[Callable[..., Mesh]]:
    """Makes a mesh of a kind with the members given; all of it is gone after the test."""
    made: list[Mesh] = []

    def make(kind: str, *members: int, **environment: str) -> Mesh:
        mesh = make_mesh(kind, environment)
        made.append(mesh)
        mesh.start(*members)
        return mesh

    yield make
    for mesh in made:
        mesh.close()


@pytest.fixture(scope="module", params=KINDS)
def mesh(request: pytest.FixtureRequest) -> Iterator[Mesh]:
    """Member 1 and member 2, shared by the tests that leave both well."""
    mesh = make_mesh(request.param, {})
    mesh.start(2)
    yield mesh
    mesh.close()
