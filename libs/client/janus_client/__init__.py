"""Python SDK of Janus, over gRPC.

>>> from janus_client import JanusClient
>>> with JanusClient("localhost:50051", api_key=None) as client:
...     for chunk in client.generate("Hello", max_tokens=32, temperature=0.0):
...         print(chunk.text, end="")
Hello from a fake gateway.

A conversation, waited for as a whole:

>>> with JanusClient("localhost:50051") as client:
...     answer = client.chat([{"role": "user", "content": "Hello"}], temperature=0.0).result()
>>> answer.text, answer.finish_reason, answer.usage.completion_tokens
('Hello from a fake gateway.', 'stop', 6)
"""

from janus_client.aio import AsyncJanusClient, AsyncStream
from janus_client.client import ChatOptions, JanusClient, Options, Stream
from janus_client.errors import (
    AuthenticationError,
    DeadlineError,
    InvalidRequestError,
    JanusError,
    NotFoundError,
    RateLimitError,
    RequestCancelledError,
    ServerError,
    UnavailableError,
    UnsupportedError,
)
from janus_client.types import (
    Chunk,
    Completion,
    Message,
    ModelInfo,
    Tls,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    Usage,
)

__all__ = [
    "AsyncJanusClient",
    "AsyncStream",
    "AuthenticationError",
    "ChatOptions",
    "Chunk",
    "Completion",
    "DeadlineError",
    "InvalidRequestError",
    "JanusClient",
    "JanusError",
    "Message",
    "ModelInfo",
    "NotFoundError",
    "Options",
    "RateLimitError",
    "RequestCancelledError",
    "ServerError",
    "Stream",
    "Tls",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "UnavailableError",
    "UnsupportedError",
    "Usage",
]
