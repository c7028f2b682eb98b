"""The door: gRPC and OpenAI-compatible HTTP side by side, tokenizer, admission, routing. No torch."""
