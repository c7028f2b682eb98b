"""The janus command: local supervisor and tools."""
