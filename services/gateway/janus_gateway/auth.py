"""API keys, the same for both protocols."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from janus_runtime.errors import Unauthenticated


class ApiKeys:
    """Compares in a time that depends neither on the key presented nor on which one matches."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    @property
    def required(self) -> bool:
        """Whether clients must present a key."""
        return bool(self._digests)

    def check(self, authorization: str | None) -> None:
        """``authorization``: the header's (or metadata entry's) value. Raises Unauthenticated."""
        if not self._digests:
            return
        scheme, _, key = (authorization or "").partition(" ")
        presented = _digest(key.strip() if scheme.lower() == "bearer" else "")
        good = False
        for digest in self._digests:
            good |= hmac.compare_digest(digest, presented)
        if not good:
            cause = "the API key is not valid" if authorization else "no API key was presented"
            raise Unauthenticated(
                cause, reason="INVALID_API_KEY", next_step="Send `Authorization: Bearer <key>`."
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
