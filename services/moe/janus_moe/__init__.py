"""MoE worker: gating, activation scheduling, expert FFNs, partial sums."""
