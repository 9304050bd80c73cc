r"""Conversations as the World and G1 models know them, and which part of them is to be learned.

A conversation is one document::

    System: You are brief.\n\nUser: Hi\n\nAssistant: Hello!\n\nUser: Bye\n\nAssistant: Bye.\n\n

Blank lines separate the turns, so newlines inside a system or user text become one newline.
What the assistant says is kept as it is, with a thinking part (``<think>...``). White space around
a text is removed.

A text is encoded in segments that no token spans, so that training sees the tokens that a prompt
ending in ``Assistant:`` gives. What counts in the loss is, for each turn of the assistant, the
segment after ``Assistant:``: a space, the text, and ``\n\n``; and the 0 at the end of the document
if the assistant speaks last.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rwkvkit.config import Config
from rwkvkit.data.forms import (
    SEAM,
    BadLine,
    Text,
    column,
    field_or_template,
    json_type,
    listed,
    utf8,
)

Loss = Literal["all", "assistant", "none"]

_ROLES = {
    "system": "System",
    "user": "User",
    "human": "User",
    "assistant": "Assistant",
    "gpt": "Assistant",
    "bot": "Assistant",
    "model": "Assistant",
}
_KEYS = (("role", "content"), ("from", "value"))
_Name = Annotated[str, Field(min_length=1)]
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_ANSWER = "Assistant:"

NEXT_TURN = "\n\nUser:"
"""What follows an answer where the conversation goes on; blank lines alone may be part of one."""


def chat_prompt(user: str, system: str | None = None) -> str:
    """Return the start of a conversation, up to where the assistant is to speak.

    Args:
        user: what the user says.
        system: what stands before it; as good as none where it is empty.

    Raises:
        BadLine: the user's text is empty, or a text holds a lone surrogate.
    """
    turns = [_turn({"role": "system", "content": system}, "system")] if system else []
    turns.append(_turn({"role": "user", "content": user}, "user"))
    return "".join(_said(role, text) for role, text in turns if text) + _ANSWER


class Chat(Config):
    """Where a line holds a conversation: a list of messages, or a column a turn.

    A bare name stands for ``messages``. ``prompt``, ``response`` and ``system`` are columns, or
    templates over columns, such as ``"{instruction} {input}"``.
    """

    messages: _Name | None = None
    """The field with the list; a message is `role` and `content`, or `from` and `value`."""

    prompt: _Name | None = None
    """Instead of messages: what the user says."""

    response: _Name | None = None
    """What the assistant answers to the prompt."""

    system: str | None = None
    """The system text before the prompt; none where the column is empty or null."""

    @model_validator(mode="after")
    def _one_shape(self) -> "Chat":
        if self.messages is None and (self.prompt is None or self.response is None):
            raise ValueError("a chat has either 'messages', or 'prompt' and 'response'")
        if self.messages is not None and (self.prompt or self.response or self.system):
            raise ValueError("a chat has either 'messages', or 'prompt' and 'response', not both")
        for key in ("prompt", "response", "system"):
            if getattr(self, key) is not None:
                field_or_template(getattr(self, key), f"chat.{key}")
        return self

    @classmethod
    def expand(cls, value: Any) -> Any:
        """Turn the shorthand, the name of the messages' field, into fields."""
        return {"messages": value} if isinstance(value, str) else value


@dataclass(frozen=True)
class ChatForm:
    """Renders conversations; see ``rwkvkit.data.forms.Form``.

    Attributes:
        chat: where a line holds them.
        loss: which segments count: ``assistant``, ``all`` or ``none``.
    """

    chat: Chat
    loss: Loss

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        if self.chat.messages is not None:
            return (self.chat.messages,)
        return tuple(
            name for key in ("system", "prompt", "response") for name in self._columns(key)
        )

    def render(self, record: Mapping[str, Any]) -> Text:
        """Return the conversation of a record, in segments.

        Raises:
            BadLine: it is no conversation with an answer.
        """
        turns = self._messages(record) if self.chat.messages else self._columns_as_turns(record)
        segments: list[bytes] = []
        marks: list[bool] = []
        context = ""
        for role, text in turns:
            if role != "Assistant":
                context += _said(role, text)
                continue
            segments += [f"{context}{_ANSWER}".encode(), f" {text}\n\n".encode()]
            marks += [False, True]
            context = ""
        if not segments:
            raise BadLine("the chat has no message of the assistant", "drop it, or skip bad lines")
        if context:
            segments.append(context.encode())
            marks.append(False)
        counted = [self.loss == "all" or (mark and self.loss == "assistant") for mark in marks]
        return Text(SEAM.join(segments), bytes(counted))

    def _messages(self, record: Mapping[str, Any]) -> list[tuple[str, str]]:
        name = self.chat.messages
        assert name is not None
        messages = column(record, name, "chat")
        if not isinstance(messages, list):
            raise BadLine(f"field {name!r} is {json_type(messages)}, not a list of messages")
        turns = [_turn(message, f"{name}[{i}]") for i, message in enumerate(messages)]
        return [(role, text) for role, text in turns if text]

    def _columns_as_turns(self, record: Mapping[str, Any]) -> list[tuple[str, str]]:
        turns = []
        for key, role in (("system", "System"), ("prompt", "User"), ("response", "Assistant")):
            text = getattr(self.chat, key)
            if text is None:
                continue
            if key == "system" and not any(record.get(name) for name in self._columns(key)):
                continue
            value = field_or_template(text, f"chat.{key}").value(record)
            turns.append((role, _clean(value, role, f"{key} ({text!r})")))
        return turns

    def _columns(self, key: str) -> tuple[str, ...]:
        text = getattr(self.chat, key)
        return () if text is None else field_or_template(text, f"chat.{key}").columns


def _said(role: str, text: str) -> str:
    """Return a turn of the system or the user."""
    return f"{role}: {text}\n\n"


def _turn(message: Any, where: str) -> tuple[str, str]:
    """Return role and text of one message."""
    if not isinstance(message, dict):
        raise BadLine(f"{where} is {json_type(message)}, not a message")
    for role_key, text_key in _KEYS:
        if role_key in message and text_key in message:
            break
    else:
        raise BadLine(
            f"{where} has neither role and content, nor from and value",
            f"it has {listed(message)}",
        )
    name, text = message[role_key], message[text_key]
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise BadLine(f"{where}: unknown role {name!r}", f"roles are {', '.join(_ROLES)}")
    if not isinstance(text, str):
        raise BadLine(f"{where}.{text_key} is {json_type(text)}, not a string")
    if role == "System" and not text.strip():
        return role, ""  # as good as none
    return role, _clean(text, role, where)


def _clean(text: str, role: str, where: str) -> str:
    utf8(text, where)
    text = text.replace("\r\n", "\n").strip()
    if not text:
        raise BadLine(f"{where}: the text of the {role.lower()} is empty")
    return text if role == "Assistant" else _BLANK_LINES.sub("\n", text)
