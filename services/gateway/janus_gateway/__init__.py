"""The door: gRPC and OpenAI-compatible HTTP."""
