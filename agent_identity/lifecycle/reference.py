# SPDX-License-Identifier: Apache-2.0
"""References name what a revocation is about: a principal, session, grant, agent, client or token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from agent_identity.errors import ConfigurationError
from agent_identity.values import Principal, agent_uri

if TYPE_CHECKING:
    from agent_identity.errors import AgentIdentityError

Kind: TypeAlias = Literal["principal", "session", "grant", "agent", "client", "token", "everything"]

EVERYTHING: Final = "*"
FORMS: Final = (
    "user:alice, user:https://idp.example#alice, service:…, trigger:…, ses_…, grant_…, "
    "agent:invoice-bot, an agent's URI, client:ID, tok_… or *"
)
_PROFILES: Final = ("user:", "service:", "trigger:")
_BY_PREFIX: Final[dict[str, Kind]] = {
    "ses_": "session",
    "grant_": "grant",
    "tok_": "token",
    "cli_": "client",
}
_OTHER_IDS: Final = ("call_", "apr_", "psn_")


class Reference(NamedTuple):
    """A reference: its kind, and its name as in records and at the authority."""

    kind: Kind
    text: str

    @property
    def principal(self) -> Principal | None:
        """The principal that it names."""
        return Principal.parse(self.text) if self.kind == "principal" else None


def read_reference(text: str) -> Reference:
    """Read a reference. A bare name is an agent's.

    Raises:
        ConfigurationError: `reference_malformed`.
    """
    if not text or not text.isprintable() or text != text.strip():
        raise malformed_reference(text)
    if text == EVERYTHING:
        return Reference("everything", text)
    if text.startswith(_PROFILES):
        try:
            return Reference("principal", str(Principal.parse(text)))
        except ConfigurationError as error:
            raise malformed_reference(text) from error
    for prefix, kind in _BY_PREFIX.items():
        if text.startswith(prefix):
            return Reference(kind, text)
    if text.startswith("client:") and text != "client:":
        return Reference("client", text.removeprefix("client:"))
    if text.startswith(_OTHER_IDS):
        raise malformed_reference(text)
    try:
        return Reference("agent", agent_uri(text.removeprefix("agent:")))
    except ConfigurationError as error:
        raise malformed_reference(text) from error


def malformed_reference(text: object) -> AgentIdentityError:
    return ConfigurationError(
        "reference_malformed", f"{str(text)[:80]!r} is not a reference", remedy=f"write {FORMS}"
    )
