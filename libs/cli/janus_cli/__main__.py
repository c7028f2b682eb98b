"""``python -m janus_cli``."""

from janus_cli.main import main

main(prog_name="janus")
