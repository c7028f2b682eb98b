"""Chat templates: untrusted Jinja from a checkpoint, rendered in a sandbox as transformers does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.utils
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from janus_models._fields import Fields
from janus_models.errors import ChatTemplateError, TokenizerError


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's words for training; in serving it is transparent."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as a plain class attribute

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which models were not trained on.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _make_dict(*pairs: Any, **items: Any) -> dict[Any, Any]:
    """``dict(...)`` in templates, without handing them the class."""
    return dict(*pairs, **items)


class _Namespace(jinja2.utils.Namespace):
    """``namespace(...)`` whose underscore names, the way to Python's internals, cannot be set."""

    # No named `self`, as in jinja2: a template may call an item that.
    def __init__(*args: Any, **items: Any) -> None:
        self, values = args[0], dict(*args[1:], **items)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a template may not set {name!r} on a namespace")


def _plain(value: Any) -> Any:
    """JSON types only: a template must not see objects whose methods the sandbox does not know."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    raise ChatTemplateError(
        f"a message holds a {type(value).__name__}",
        field="messages",
        value=type(value).__name__,
        allowed="JSON values",
        reason="BAD_MESSAGE",
        next_step="Send plain JSON values",
    )


class ChatTemplate:
    """One compiled template."""

    def __init__(self, source: str, *, origin: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        environment.globals["dict"] = _make_dict
        environment.globals["namespace"] = _Namespace
        self.source = source
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as cause:
            raise TokenizerError(
                f"{origin}: the chat template does not compile: {cause}",
                reason="BAD_CHAT_TEMPLATE",
                next_step="Correct the template",
            ) from cause

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt. Raises ChatTemplateError when the template refuses, with its reason."""
        if not messages:
            raise ChatTemplateError(
                "messages is empty",
                field="messages",
                value="[]",
                allowed="at least one message",
                reason="BAD_MESSAGES",
                next_step="Send a conversation",
            )
        try:
            return self._template.render(
                messages=_plain(messages),
                tools=_plain(tools),
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
            ZeroDivisionError,
            OverflowError,
            RecursionError,
        ) as cause:
            # Whatever the template stumbles over came with the messages: the caller must hear it.
            raise ChatTemplateError(
                f"the chat template refused the messages: {cause}",
                field="messages",
                reason="CHAT_TEMPLATE_REFUSED",
                next_step="Check roles, their order and the content of each message",
            ) from cause


def load_template(directory: Path, config: Fields) -> ChatTemplate | None:
    """``chat_template.jinja``, else tokenizer_config.json's ``chat_template`` (the default of several)."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return ChatTemplate(path.read_text(encoding="utf-8"), origin=str(path))
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, Mapping)}
        value = named.get("default")
    if value is None:
        return None
    if not isinstance(value, str):
        raise config.error(
            "chat_template", str(value)[:80], "a template, or a list of them with one named default"
        )
    return ChatTemplate(value, origin=config.source)
