"""Python SDK for a Janus mesh, over gRPC."""
