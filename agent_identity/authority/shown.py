# SPDX-License-Identifier: Apache-2.0
"""What a request shows of its client: an assertion in its form, or else the certificate of its connection.

Each way of proof asks for what it needs, and is refused where the request shows something else: neither stands in for the
other. A certificate beside an assertion is somebody's mesh, and proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agent_identity import jose
from agent_identity.keys.certificates import ShownCertificate, read_shown
from agent_identity.delegation.claims import Claims
from agent_identity.errors import VerificationError

__all__ = ["Shown"]


@dataclass(frozen=True, slots=True)
class Shown:
    """An assertion, of its `client_assertion_type`, and the connection's certificate (PEM), as far as there are any."""

    assertion: jose.Parsed | None = field(default=None, repr=False)
    assertion_type: str | None = None
    certificate: str | None = field(default=None, repr=False)

    def claimed(self) -> str:
        """Who an assertion says that made it. It is read before it is verified, only to learn who has to have made it."""
        if self.assertion is None:
            raise _no_assertion()
        return Claims(jose.loads_object(self.assertion.payload), VerificationError).text("iss")

    def asserted(self, assertion_type: str) -> jose.Parsed:
        """The assertion of a client that proves itself by one of that type.

        Raises:
            VerificationError: there is none, or one of another type, or a certificate in its place.
        """
        if self.assertion is None and self.certificate is None:
            raise _no_assertion()
        if self.assertion is None or self.assertion_type != assertion_type:
            raise _another_way()
        return self.assertion

    def certified(self) -> ShownCertificate:
        """The certificate of a client that proves itself by one.

        Raises:
            VerificationError: there is none that clients have, or an assertion in its place.
        """
        if self.assertion is not None:
            raise _another_way()
        found = None if self.certificate is None else read_shown(self.certificate)
        if found is None:
            raise VerificationError(
                "client_certificate_missing", "the connection has no client's certificate"
            )
        return found


def _no_assertion() -> VerificationError:
    return VerificationError("client_assertion_missing", "nothing proves the client")


def _another_way() -> VerificationError:
    return VerificationError("method_mismatch", "the client proves itself in another way")
