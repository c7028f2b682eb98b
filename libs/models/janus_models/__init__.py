"""Model families, checkpoints, tokenizer and chat template."""
