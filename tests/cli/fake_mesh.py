"""``janus up`` with fake services: ``python fake_mesh.py RUN_DIR OPTIONS_JSON``.

Options: attention, experts, behaviours ({worker id: behaviour}), restart, deadline, stop_deadline, hold_stdin.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from janus_cli import supervisor as module
from janus_cli.commands.up import serve
from janus_cli.errors import Failure, fail_cleanly
from janus_cli.progress import LineReporter
from janus_cli.rundir import RunDir
from janus_cli.spec import MeshSpec, ServiceSpec, services
from janus_cli.supervisor import Supervisor

FAKE = Path(__file__).with_name("fake_service.py")


def main() -> None:
    run_dir, options = RunDir(Path(sys.argv[1])), json.loads(sys.argv[2])
    behaviours = options.get("behaviours", {})
    module.STOP_DEADLINE_S = options.get("stop_deadline", 10.0)

    def fakes(mesh: MeshSpec, redis_url: str, traces: Path) -> list[ServiceSpec]:
        return [
            ServiceSpec(
                role=spec.role,
                index=spec.index,
                command=(
                    sys.executable, str(FAKE), spec.worker_id, behaviours.get(spec.worker_id, ""),
                    str(mesh.attention), str(mesh.experts),
                ),
                env={**os.environ, "JANUS_REDIS_URL": redis_url},
            )
            for spec in services(mesh, redis_url, traces)
        ]  # fmt: skip

    spec = MeshSpec(
        model=Path("/nowhere"), attention=options.get("attention", 1), experts=options.get("experts", 1)
    )
    with fail_cleanly(), LineReporter() as report:
        supervisor = Supervisor(
            spec, run_dir, report, restart=options.get("restart", True),
            start_deadline_s=options.get("deadline", 30.0), make_services=fakes,
        )  # fmt: skip
        asyncio.run(
            serve(supervisor, report, as_json=True, daemon=False, hold_stdin=options.get("hold_stdin", False))
        )


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        failure.show()
        sys.exit(failure.exit_code)
