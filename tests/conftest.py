"""What every test may rely on: a quiet, bounded environment that is the test's own."""

from __future__ import annotations

import os

# Before anything imports torch or OpenTelemetry: tests share two cores, and speak to no collector.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "2")
for _name in [n for n in os.environ if n.startswith(("JANUS_", "OTEL_")) and n != "JANUS_TEST_SWARM"] + [
    "REDIS_URL"
]:
    os.environ.pop(_name, None)
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
