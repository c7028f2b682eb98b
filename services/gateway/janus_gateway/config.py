"""Settings of the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from janus_runtime.errors import InvalidArgument
from janus_runtime.settings import ServiceSettings, setting

from janus_gateway.tools import FORMATS


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings(ServiceSettings):
    """What the gateway needs to know."""

    model: str = setting("", required=True)
    """Hugging Face checkpoint directory; the gateway reads its configuration and tokenizer, no weights."""
    model_name: str = ""
    """Name that clients give as `model`; default: the directory's name."""
    http_port: int = setting(0, minimum=0, maximum=65535)
    """Port of the OpenAI-compatible API; 0 picks a free one."""
    http_tls: bool = False
    """Serve HTTPS with --tls-cert and --tls-key."""
    api_keys: str = setting("", secret=True)
    """Keys that clients may present, separated by commas; empty: no key is asked for."""
    max_in_flight: int = setting(256, minimum=1, maximum=1_000_000)
    """Most sequences being generated at once; beyond it a request is refused (429, RESOURCE_EXHAUSTED)."""
    max_choices: int = setting(64, minimum=1, maximum=4096)
    """Most sequences (prompts times n) in one request."""
    max_body_bytes: int = setting(8 * 1024 * 1024, minimum=1024, maximum=64 * 1024 * 1024)
    """Largest request, in bytes."""
    tool_format: str = "auto"
    """How the model writes tool calls: auto (from its chat template), none, or a name of janus_gateway.tools."""
    max_context: int = setting(0, minimum=0)
    """Most tokens of prompt and answer together; 0: what the model can."""
    request_timeout_s: float = setting(600.0, minimum=0.1, maximum=86400)
    """Longest that one request may take; a gRPC caller's earlier deadline wins."""
    retry_s: float = setting(30.0, minimum=0, maximum=3600)
    """A stream whose worker was lost is continued elsewhere for this long before it fails."""
    journal_ttl_s: int = setting(600, minimum=1, maximum=86400)
    """A request with an idempotency key can be repeated for this long after its last token."""
    journal_entries: int = setting(4096, minimum=1, maximum=1_000_000)
    """Most such requests that the journal in Redis holds; the oldest go first."""
    journal_items: int = setting(4096, minimum=1, maximum=1_000_000)
    """Most writes to one request's journal, about 20 a second; what is beyond is computed again."""
    drain_s: float = setting(5.0, minimum=0, maximum=25)
    """At shutdown, streams that run have this long to end."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The API keys, one by one."""
        return tuple(key.strip() for key in self.api_keys.split(",") if key.strip())

    def checked_model(self) -> Path:
        """The model directory. Raises InvalidArgument when it is none, or TLS is asked for without files."""
        if self.http_tls and not (self.tls_cert and self.tls_key):
            raise InvalidArgument("needs --tls-cert and --tls-key", field="--http-tls", value=True)
        if self.tool_format not in ("auto", "none", *FORMATS):
            raise InvalidArgument(
                "is unknown",
                field="--tool-format",
                value=self.tool_format,
                allowed=", ".join(("auto", "none", *FORMATS)),
            )
        path = Path(self.model).expanduser()
        if not (path / "config.json").is_file():
            raise InvalidArgument(
                "is not a Hugging Face checkpoint directory (no config.json)",
                field="--model",
                value=self.model,
                next_step="Build the demo with `janus model demo DIR`, or name a downloaded checkpoint.",
            )
        return path
