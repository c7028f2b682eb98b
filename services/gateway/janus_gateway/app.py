"""The HTTP application: routes, keys, errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources

from janus_runtime.errors import InvalidArgument, NotFound
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from janus_gateway.activity import activity
from janus_gateway.auth import ApiKeys
from janus_gateway.metrics import CHAT, COMPLETION
from janus_gateway.middleware import RequestMiddleware
from janus_gateway.model import ServedModel
from janus_gateway.openai import errors, handlers
from janus_gateway.pool import WorkerPool
from janus_gateway.state import snapshot
from janus_gateway.worker_metrics import WorkerMetrics

Handler = Callable[[Request], Awaitable[Response]]

_OPERATIONS = {"/v1/chat/completions": CHAT, "/v1/completions": COMPLETION}
_GONE = 499
"""nginx's status for a client that went away; nobody reads it."""


def build_app(parts: handlers.Parts, pool: WorkerPool, keys: ApiKeys, workers: WorkerMetrics) -> Starlette:
    """Everything that HTTP serves. Keys guard ``/v1`` and ``/api``; health, metrics and the page are open."""
    model, metrics, settings = parts.model, parts.metrics, parts.settings
    files = resources.files("janus_gateway")
    page = files.joinpath("dashboard.html").read_text(encoding="utf-8")
    page = page.replace("/* charts.js */", files.joinpath("charts.js").read_text(encoding="utf-8"))

    def guarded(handler: Handler, *, key: bool = True) -> Handler:
        async def call(request: Request) -> Response:
            try:
                if key:
                    keys.check(request.headers.get("authorization"))
                return await handler(request)
            except (handlers.ClientGone, ClientDisconnect):
                request.scope["janus.error"] = "CANCELLED"
                return Response(status_code=_GONE)
            except Exception as error:  # noqa: BLE001 - the client must hear it; shown() logs bugs
                shown = errors.shown(error)
                request.scope["janus.error"] = shown.code.name
                if errors.status(shown) < 500 and request.scope["path"] in _OPERATIONS:
                    metrics.rejected(shown.code.name)
                return errors.response(shown)

        return call

    async def chat(request: Request) -> Response:
        return await handlers.chat_completions(request, parts)

    async def completions(request: Request) -> Response:
        return await handlers.completions(request, parts)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(model, metrics.started)]})

    async def one_model(request: Request) -> Response:
        name = request.path_params["model"]
        if name != model.name:
            raise NotFound(
                f"the model {name!r} does not exist here",
                field="model",
                value=name,
                allowed=model.name,
                reason="MODEL_NOT_FOUND",
            )
        return JSONResponse(_model(model, metrics.started))

    async def live(request: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def ready(request: Request) -> Response:
        reasons = ["shutting down"] if parts.generator.draining else pool.unready()
        if reasons:
            return JSONResponse({"status": "not ready", "reasons": reasons}, status_code=503)
        assert pool.cohort is not None
        return JSONResponse({"status": "ready", "epoch": pool.cohort.epoch, "model": model.name})

    async def metrics_text(request: Request) -> Response:
        metrics.epoch.set(pool.cohort.epoch if pool.cohort is not None else 0)
        text = metrics.render() + await workers.render(await pool.leases())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def state(request: Request) -> Response:
        found = await snapshot(pool, parts.generator, model, metrics, settings.worker_id)
        return JSONResponse(found, headers={"cache-control": "no-store"})

    async def active(request: Request) -> Response:
        found = activity(await workers.ask(await pool.leases()), pool.cohort)
        return JSONResponse(found, headers={"cache-control": "no-store"})

    async def dashboard(request: Request) -> Response:
        return HTMLResponse(page, headers={"cache-control": "no-cache", "content-security-policy": _CSP})

    routes = [
        Route("/v1/chat/completions", guarded(chat), methods=["POST"]),
        Route("/v1/completions", guarded(completions), methods=["POST"]),
        Route("/v1/models", guarded(models)),
        Route("/v1/models/{model:path}", guarded(one_model)),
        Route("/health/live", guarded(live, key=False)),
        Route("/health/ready", guarded(ready, key=False)),
        Route("/metrics", guarded(metrics_text, key=False)),
        Route("/api/state", guarded(state)),
        Route("/api/activity", guarded(active)),
        Route("/", guarded(dashboard, key=False)),
    ]
    middleware = Middleware(
        RequestMiddleware, metrics=metrics, operations=_OPERATIONS, max_body_bytes=settings.max_body_bytes
    )
    return Starlette(routes=routes, middleware=[middleware], exception_handlers={HTTPException: _no_route})


_CSP = "; ".join(
    (
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "script-src 'unsafe-inline'",
        "connect-src 'self'",
        "img-src data:",
    )
)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        cause = InvalidArgument(
            f"{request.method} is not allowed for {path}", allowed=allowed, reason="METHOD_NOT_ALLOWED"
        )
        request.scope["janus.error"] = cause.code.name
        answer = errors.response(cause)
        answer.headers.update(error.headers or {})
        return answer
    return errors.response(
        NotFound(
            f"there is nothing at {path}",
            reason="UNKNOWN_URL",
            next_step="See the list of paths in the documentation.",
        )
    )


def _model(model: ServedModel, created: float) -> dict[str, object]:
    return {
        "id": model.name,
        "object": "model",
        "created": int(created),
        "owned_by": "janus",
        "context_length": model.context,
        "family": model.config.model_type,
    }
