"""Janus protobuf contracts (janus.v1), generated code."""
