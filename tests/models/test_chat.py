from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from janus_models.chat import ChatTemplate, load_template
from janus_models.errors import ChatTemplateError, TokenizerError
from janus_models.tiny import write_tokenizer
from janus_models.tokenizer import Tokenizer

HELLO = [{"role": "user", "content": "Hello"}]


def render(source: str, messages: list[dict[str, Any]] = HELLO, **variables: Any) -> str:
    return ChatTemplate(source, origin="test").render(messages, add_generation_prompt=True, **variables)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages | tojson }}",
        "{{ {'b': '<&>', 'a': 'é'} | tojson(indent=2, sort_keys=true) }}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{% generation %}{{ messages[0]['content'] }}{% endgeneration %}",
        "{{ strftime_now('%Y') }}",
        "  {% if tools %}\n{{ tools[0].function.name }}\n{% endif %}\n{{ bos_token }}",
    ],
)
def test_renders_as_transformers_does(source: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
    messages = [*HELLO, {"role": "assistant", "content": "Hi"}]
    expected, _ = render_jinja_template(
        [messages], tools=tools, chat_template=source, add_generation_prompt=True, bos_token="<s>"
    )
    assert render(source, messages, tools=tools, bos_token="<s>") == expected[0]


def test_refusal_carries_the_templates_words() -> None:
    with pytest.raises(ChatTemplateError, match="roles must alternate") as caught:
        render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.field == "messages" and caught.value.code.name == "INVALID_ARGUMENT"
    with pytest.raises(ChatTemplateError):
        render("{{ messages[0]['content'] + 1 }}")
    with pytest.raises(ChatTemplateError, match="empty"):
        render("x", [])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ strftime_now.__globals__['json'] }}",
        "{% set ns = namespace(_x=1) %}",
        "{{ dict.fromkeys('ab') }}",
        "{% set ns = namespace(x=1) %}{% set ns._y = 2 %}",
    ],
)
def test_sandbox(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        render(source)


def test_objects_are_refused() -> None:
    with pytest.raises(ChatTemplateError, match="datetime"):
        render("{{ messages }}", [{"role": "user", "content": datetime.now()}])


def test_where_the_template_comes_from(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())

    def text(**changes: Any) -> str:
        path.write_text(json.dumps({**settings, **changes}))
        return Tokenizer(tmp_path).render_chat(HELLO)

    assert text() == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert (
        text(chat_template=[{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]) == "D"
    )
    (tmp_path / "chat_template.jinja").write_text("file {{ eos_token }}")
    assert text() == "file <|im_end|>", "the file wins"
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ChatTemplateError, match="no chat template"):
        text(chat_template=None)
    with pytest.raises(TokenizerError, match="does not compile"):
        text(chat_template="{% if %}")
    with pytest.raises(TokenizerError, match="chat_template"):
        text(chat_template=7)


def test_qwen3_style_template_of_a_checkpoint(tiny: Callable[..., Path]) -> None:
    tokenizer = Tokenizer(tiny("qwen3_moe"))
    assert tokenizer.chat_template is not None
    ids = tokenizer.apply_chat([*HELLO, {"role": "assistant", "content": "Hi"}], add_generation_prompt=False)
    assert tokenizer.decode(ids, skip_special=False).endswith("<|im_start|>assistant\nHi<|im_end|>\n")
    assert load_template(Path("nowhere"), tokenizer._config) is not None
