"""Generated protobuf modules of package janus.v1; regenerate with `make protos`."""
