"""What attention and MoE workers share: two processes, the lockstep protocol, cohort adoption."""

VERSION = "0.1.0"
"""Version of Janus that a worker's lease names."""
