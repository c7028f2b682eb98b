"""In-process mesh, real-process mesh and tiny checkpoints for tests."""
