# SPDX-License-Identifier: Apache-2.0
"""The tables of `[authority]`: what `agent-identity authority serve` is to an organisation, and who its clients are."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from agent_identity.config.tables import MAX_DEPTH, IssuerName, Kind, Table, Text, Texts, Url

__all__ = ["AuthorityClientTable", "AuthorityTable", "AuthorityTlsTable"]

ClientProofName: TypeAlias = Literal[
    "private_key_jwt", "spiffe_jwt", "tls_client_auth", "workload_token"
]


class AuthorityClientTable(Table):
    """One client of the authority: which agent it is, how it proves that, and what it gets for whom."""

    agent: Text | None = Field(
        default=None,
        description="The agent (`act.sub`), a name or a URI, by default the table's name.",
    )
    auth: ClientProofName = Field(
        default="private_key_jwt", description="How the client proves itself."
    )
    jwks: Annotated[Text | None, Kind.KEYS] = Field(
        default=None,
        description="The client's public keys, for `spiffe_jwt` the bundle of its trust domain, a URL or `file:PATH`.",
    )
    subject: Text | None = Field(
        default=None,
        description="The SPIFFE ID of `spiffe_jwt`, or the `sub` of the platform's token of `workload_token`.",
    )
    san_uri: Text | None = Field(
        default=None,
        description="The URI in the certificate of `tls_client_auth` that is the client, a SPIFFE ID for instance.",
    )
    san_dns: Text | None = Field(
        default=None, description="The DNS name in that certificate that is the client."
    )
    subject_dn: Text | None = Field(
        default=None,
        description="The subject of that certificate, as in `CN=bot,O=Acme` (RFC 4514).",
    )
    issuer: IssuerName = Field(
        default=None, description="The platform whose token `workload_token` is."
    )
    claims: dict[str, str] | None = Field(
        default=None, description="Further claims that the platform's token has to have."
    )
    subject_issuers: Annotated[Texts | None, Kind.ISSUER] = Field(
        default=None,
        description='The issuers whose principals it brings, by default all with `trust = ["subjects"]`.',
    )
    subject_clients: Texts = Field(
        default=(),
        description="The clients (`azp`, `client_id`) to which a principal's token may have been given; by default it must name none.",
    )
    resources: Annotated[Texts, Field(min_length=1)] = Field(
        description="The resources that its grants may reach."
    )
    scopes: Texts = Field(default=(), description="The most scopes of a grant, by default none.")
    max_depth: Annotated[int, Field(ge=0, le=MAX_DEPTH)] = Field(
        default=3, description="How often a grant may be delegated on, at most."
    )


class AuthorityTlsTable(Table):
    """TLS at the authority's own port, for clients that prove themselves by a certificate (`tls_client_auth`)."""

    certificate: Annotated[Text, Kind.REFERENCE] = Field(
        description="The certificate chain (PEM) that the authority shows, leaf first."
    )
    key: Annotated[Text, Kind.REFERENCE] = Field(
        description="The private key (PEM) of that certificate."
    )
    client_ca: Annotated[Text, Kind.REFERENCE] = Field(
        description="The authorities (PEM) whose client certificates count; no other does."
    )


class AuthorityTable(Table):
    """What `agent-identity authority serve` is to an organisation: the anchor in front of its identity providers."""

    issuer: Url = Field(
        default=None,
        description="The URL at which it is reached, by default the one on loopback where it listens.",
    )
    audiences: Texts = Field(
        default=(),
        description="What a principal's token may be for, by default the authority's `issuer`.",
    )
    registration: bool = Field(
        default=False,
        description="Whether agents may register themselves too, for principals of the authority's own directory alone.",
    )
    rate: Annotated[int, Field(gt=0)] = Field(
        default=600, description="The most requests of one client in a minute."
    )
    tls: AuthorityTlsTable | None = Field(
        default=None,
        description="TLS at its own port, for clients that prove themselves by a certificate.",
    )
    clients: dict[str, AuthorityClientTable] = Field(
        default={}, description="Its clients, by their `client_id`."
    )
