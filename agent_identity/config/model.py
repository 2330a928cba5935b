# SPDX-License-Identifier: Apache-2.0
"""Every table and key that `agent-identity.toml` may have, with one sentence each; the documentation is made of those.

pydantic checks shapes alone. What a text stands for (`Kind`: a reference, an issuer's name, a path) stands beside it, so
that `checks` and `reading` find all of one kind without listing keys again.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PrivateAttr, StringConstraints

from agent_identity.keys.algorithms import Algorithm  # noqa: TC001 - pydantic reads it at run time

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "CERTIFICATE_SOURCES",
    "LEGACY_SOURCES",
    "MAX_DEPTH",
    "OAUTH_SOURCES",
    "AgentTable",
    "ApprovalTable",
    "AuthorityClientTable",
    "AuthorityTable",
    "AuthorityTlsTable",
    "Binding",
    "BudgetTable",
    "Bytes",
    "CliTable",
    "ClientAuth",
    "Configuration",
    "HttpTable",
    "Inferred",
    "IssuerName",
    "IssuerTable",
    "Kind",
    "LedgerTable",
    "PolicyTable",
    "ProviderName",
    "Reference",
    "Registration",
    "ResourceTable",
    "Seconds",
    "SessionTable",
    "SharedTable",
    "SignalsTable",
    "SourceName",
    "SpiffeTable",
    "Table",
    "Text",
    "Texts",
    "TransactionTokenTable",
    "Url",
    "VaultTable",
    "values_of",
]


class Kind(Enum):
    """What a text of the file stands for, beyond being text."""

    REFERENCE = "the place of a secret"
    ISSUER = "the name of a table of [issuers]"
    URL = "an address that we connect to: https, or http on this machine"
    ORIGIN = "the origin of such an address"
    PATTERN = "files, by a path with * and ?"
    PATH = "a file"
    KEYS = "public keys, by an address or a file: reference"
    LEDGER = "a ledger"


Text: TypeAlias = Annotated[str, StringConstraints(min_length=1)]
Texts: TypeAlias = Annotated[tuple[Text, ...], Field(strict=False)]
Reference: TypeAlias = Annotated[Text | None, Kind.REFERENCE]
IssuerName: TypeAlias = Annotated[Text | None, Kind.ISSUER]
Url: TypeAlias = Annotated[Text | None, Kind.URL]
Seconds: TypeAlias = Annotated[float, Field(gt=0)]
Bytes: TypeAlias = Annotated[int, Field(gt=0)]

MAX_DEPTH: Final = 7


class Table(BaseModel):
    """One table: known keys alone, the types that TOML gives, and no value in an error."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )


SourceName: TypeAlias = Literal[
    "token-exchange",
    "client-credentials",
    "jwt-bearer",
    "id-jag",
    "identity-chaining",
    "authorization-code",
    "device",
    "ciba",
    "refresh-token",
    "spiffe-jwt",
    "spiffe-x509",
    "workload-token",
    "api-key",
    "basic",
    "static",
    "client-certificate",
]
ProviderName: TypeAlias = Literal[
    "ambient", "aws", "azure", "file", "gcp", "github", "gitlab", "kubernetes", "spiffe"
]
ClientAuth: TypeAlias = Literal[
    "private_key_jwt",
    "client_secret_basic",
    "client_secret_post",
    "tls_client_auth",
    "self_signed_tls_client_auth",
    "spiffe_jwt",
    "workload_token",
    "none",
]
Registration: TypeAlias = Literal["configured", "cimd", "dynamic"]
TokenType: TypeAlias = Literal[
    "access_token",
    "id_token",
    "jwt",
    "urn:ietf:params:oauth:token-type:access_token",
    "urn:ietf:params:oauth:token-type:id_token",
    "urn:ietf:params:oauth:token-type:jwt",
]
Binding: TypeAlias = Literal["dpop", "mtls", "none"]

OAUTH_SOURCES: Final[frozenset[str]] = frozenset(
    {
        *("token-exchange", "client-credentials", "jwt-bearer", "id-jag", "identity-chaining"),
        *("authorization-code", "device", "ciba", "refresh-token"),
    }
)
"""What an issuer gives a token for."""

LEGACY_SOURCES: Final[frozenset[str]] = frozenset(
    {"api-key", "basic", "static", "client-certificate"}
)
"""What a stranger understands, who gets no delegation data."""

CERTIFICATE_SOURCES: Final[frozenset[str]] = frozenset({"spiffe-x509", "client-certificate"})
"""What is shown in TLS and not in a header."""


class Inferred(NamedTuple):
    """One value that the file leaves out, and why it is that."""

    key: str
    value: str
    reason: str


class AgentTable(Table):
    """Who this agent is."""

    name: Text | None = Field(default=None, description="The agent's name.")
    id: Text | None = Field(
        default=None, description="The agent's URI, by default `urn:agent-identity:agent:<name>`."
    )
    owner: Text | None = Field(default=None, description="Who answers for the agent.")
    grants: IssuerName = Field(
        default=None, description="The issuer that signs the first grant of each chain."
    )
    signer: Reference = Field(
        default=None,
        description="What signs the first grant instead of an issuer: a private key (PEM), or `vault:MOUNT/NAME`, a key of transit that stays in the vault.",
    )
    signer_id: Text | None = Field(
        default=None,
        description="The `iss` under which verifiers know the signer, by default `urn:agent-identity:signer:<thumbprint>`; for a key in a vault a digest of its place stands for the thumbprint.",
    )
    key: Reference = Field(
        default=None,
        description="The agent's private key (PEM), for replicas that share an address; by default each process makes its own.",
    )


class IssuerTable(Table):
    """One issuer: who it is, what it is trusted for, and as which client we ask there."""

    issuer: Annotated[Text, Kind.URL] = Field(description="The issuer's identifier, an https URL.")
    trust: Annotated[tuple[Literal["subjects", "grants"], ...], Field(strict=False)] = Field(
        default=(),
        description="What is believed of it: `subjects` its tokens about principals, `grants` its first grants; by default neither.",
    )
    jwks: Annotated[Text | None, Kind.KEYS] = Field(
        default=None,
        description="Where its public keys are, a URL or `file:PATH`; by default its metadata says so.",
    )
    audience: Text | None = Field(
        default=None,
        description="The audience that a principal's token must name, by default the `client_id`.",
    )
    algorithms: Annotated[tuple[Algorithm, ...] | None, Field(strict=False, min_length=1)] = Field(
        default=None, description="The signature algorithms accepted from it."
    )
    evidence: Literal["key", "issuer", "asserted"] | None = Field(
        default=None, description="The most evidence that its grants may give of a principal."
    )
    token_type: TokenType | None = Field(
        default=None,
        description="The type of the principals' tokens, where it is not to be read from the token.",
    )
    subjects_of: Annotated[Texts, Kind.ISSUER] = Field(
        default=(), description="Issuers whose `sub` names the same people there."
    )
    client_id: Text | None = Field(
        default=None,
        description="The client that we are there; an https URL is a metadata document.",
    )
    client_auth: ClientAuth | None = Field(
        default=None,
        description="How the client proves itself, by default what its key, secret or certificate can.",
    )
    client_key: Reference = Field(
        default=None,
        description="The client's private key (PEM), for an assertion or for its certificate.",
    )
    client_key_id: Text | None = Field(
        default=None,
        description="The `kid` under which the issuer knows that key, by default its thumbprint.",
    )
    client_secret: Reference = Field(default=None, description="The client's secret.")
    client_certificate: Reference = Field(
        default=None,
        description="The client's certificate chain (PEM), with its key where `client_key` is not that.",
    )
    client_assertion_audience: Literal["issuer", "token-endpoint"] = Field(
        default="issuer",
        description="What a client assertion names as audience; `token-endpoint` is for old issuers and warns.",
    )
    registration: Registration | None = Field(
        default=None,
        description="How the issuer came to know the client: configured there, by a metadata document, or registered at start.",
    )
    registration_token: Reference = Field(
        default=None, description="The initial access token of dynamic registration."
    )
    resource_indicators: bool = Field(
        default=True,
        description="Whether it is told the resource (RFC 8707); some issuers refuse requests that name one.",
    )
    endpoint_origins: Annotated[Texts, Kind.ORIGIN] = Field(
        default=(), description="Further origins at which its endpoints may be."
    )


class TransactionTokenTable(Table):
    """The transaction token that goes along with a resource's requests."""

    issuer: Annotated[Text, Kind.ISSUER] = Field(description="The issuer that is asked for it.")
    audience: Text = Field(description="The trust domain in which it is good.")


class ResourceTable(Table):
    """How a credential for one resource is had, and what goes along with it."""

    source: SourceName | None = Field(
        default=None,
        description="The way to the credential, by default token exchange where there is an issuer, else the embedded authority.",
    )
    issuer: IssuerName = Field(
        default=None, description="The issuer that is asked, by default the only one."
    )
    via: IssuerName = Field(
        default=None,
        description="The principal's issuer, the first leg of `id-jag` and `identity-chaining`.",
    )
    binding: Binding | None = Field(
        default=None,
        description="What the token is bound to, by default `dpop` for tokens of an issuer, else `none`.",
    )
    scopes: Texts | None = Field(default=None, description="The most that may be asked for.")
    assertion: Literal["send", "omit"] | None = Field(
        default=None,
        description="Whether the chain and each call's assertion go along, by default `omit` for legacy sources.",
    )
    audience: Text | None = Field(
        default=None,
        description="The audience to ask for, where the issuer knows the resource by another name.",
    )
    actor: Literal["grant", "workload", "none"] | None = Field(
        default=None, description="What token exchange shows as the actor, by default `none`."
    )
    authorization_details: Annotated[tuple[dict[str, JsonValue], ...], Field(strict=False)] = Field(
        default=(),
        description="What is asked for in detail (RFC 9396); those of the type `urn:agent-identity:tool` limit tools and their arguments.",
    )
    transaction_token: TransactionTokenTable | None = Field(
        default=None, description="The transaction token that goes along."
    )
    secret: Reference = Field(default=None, description="The key of `api-key`.")
    header: Text | None = Field(
        default=None, description="The header of `api-key`, by default `Authorization`."
    )
    scheme: str | None = Field(
        default=None,
        description="What stands before the key of `api-key`, by default `Bearer` in `Authorization`, else nothing.",
    )
    username: Text | None = Field(default=None, description="The user of `basic`.")
    password: Reference = Field(default=None, description="The password of `basic`.")
    token: Reference = Field(default=None, description="The token of `static`.")
    certificate: Reference = Field(
        default=None, description="The certificate chain (PEM) of `client-certificate`."
    )
    key: Reference = Field(
        default=None,
        description="The private key (PEM) of that certificate, where it is kept apart.",
    )
    refresh_token: Reference = Field(
        default=None, description="Where refresh tokens are kept beyond this process."
    )
    provider: ProviderName | None = Field(
        default=None,
        description="The platform that says who we are, by default the one that is found.",
    )
    path: Text | None = Field(
        default=None, description="The platform's token file, or for `gitlab` the variable's name."
    )
    token_host: Text | None = Field(
        default=None,
        description="The host of `github` tokens, for an Enterprise Server.",
    )
    expect: dict[str, str] | None = Field(
        default=None, description="Claims that the platform's token has to have."
    )
    assertion_from: Literal["client", "subject", "workload"] | None = Field(
        default=None,
        description="Whose assertion `jwt-bearer` presents, by default the `client`'s own.",
    )
    login_hint_from: Literal["sub", "id-token"] | None = Field(
        default=None,
        description="What names the person to `ciba`, by default the principal's `sub`.",
    )


class PolicyTable(Table):
    """Who decides what is allowed."""

    engine: Literal["cedar", "authzen", "opa", "grants-only"] | None = Field(
        default=None,
        description="What decides; `grants-only` lets pass whatever grants don't forbid.",
    )
    files: Annotated[Texts, Kind.PATTERN] = Field(
        default=(), description="The policies of `cedar`, as paths that may have `*`."
    )
    url: Url = Field(default=None, description="Where `authzen` or `opa` is asked.")
    path: Text | None = Field(default=None, description="The rule that `opa` is asked for.")
    mapping: Text | None = Field(default=None, description="The words in which `authzen` is asked.")
    observe: bool = Field(
        default=False,
        description="Whether a denial of policy is recorded only, and the call let through.",
    )


class LedgerTable(Table):
    """Where the record is kept."""

    url: Annotated[Text, Kind.LEDGER] = Field(
        default="sqlite:",
        description="`sqlite:` in the state directory, `sqlite:///relative`, `sqlite:////absolute`, or `memory:`.",
    )
    durability: Literal["process", "power"] = Field(
        default="process",
        description="What a record survives: the end of the process, or of the power.",
    )


class SharedTable(Table):
    """What several processes know together."""

    url: Text = Field(default="memory:", description="`memory:` is this process alone.")
    max_staleness: Seconds = Field(
        default=10.0, description="Seconds that knowledge of revocations may be old."
    )


class BudgetTable(Table):
    """What one session may use up."""

    calls: Annotated[int, Field(gt=0)] | None = Field(default=None, description="The most calls.")
    cost: Annotated[float, Field(gt=0)] | None = Field(default=None, description="The most cost.")
    rate: JsonValue = Field(default=None, description="The most calls in a time.")


class SessionTable(Table):
    """How long and how deep sessions go."""

    lifetime: Seconds = Field(default=3600.0, description="Seconds that a session lasts at most.")
    grant_lifetime: Seconds = Field(
        default=900.0, description="Seconds that a grant lasts at most."
    )
    max_depth: Annotated[int, Field(ge=0, le=MAX_DEPTH)] = Field(
        default=3, description="How often a session may be delegated on."
    )
    budget: BudgetTable | None = Field(default=None, description="What one session may use up.")


class ApprovalTable(Table):
    """Who is asked when a call needs a person's yes."""

    channel: Text | None = Field(default=None, description="How approvers are asked.")
    url: Url = Field(default=None, description="Where they are asked.")
    roles: JsonValue = Field(default=None, description="Who has which role.")


class HttpTable(Table):
    """Limits of what we send and take in."""

    deadline: Seconds = Field(
        default=10.0,
        description="Seconds that a credential may take, discovery and headers included.",
    )
    interaction_timeout: Seconds = Field(
        default=300.0, description="Seconds that a person gets for what they must do."
    )
    body_limit: Bytes = Field(default=1_048_576, description="The most bytes of an answer.")
    header_limit: Bytes = Field(
        default=8_000, description="The most bytes of one header that carries a chain."
    )
    ca: Annotated[Text | None, Kind.PATH] = Field(
        default=None,
        description="A file of certificate authorities (PEM) that are trusted beside the public ones.",
    )
    allow_private: Texts = Field(
        default=(), description="Hosts with private addresses that discovered URLs may lead to."
    )


class SpiffeTable(Table):
    """Where the SPIFFE Workload API is."""

    socket: Text | None = Field(
        default=None, description="Its socket, by default what `SPIFFE_ENDPOINT_SOCKET` names."
    )
    trust_domain: Text | None = Field(
        default=None, description="The trust domain that our own SVIDs have to be of."
    )


class SignalsTable(Table):
    """A stream of security events that revoke (SSF, CAEP)."""

    issuer: Annotated[Text, Kind.URL] = Field(description="Who transmits them.")
    audience: Text = Field(description="Whom they are for.")
    delivery: Literal["poll", "push"] = Field(default="poll", description="How they come.")


class VaultTable(Table):
    """The Vault or OpenBao that `vault:PATH` references are read from."""

    address: Annotated[Text, Kind.URL] = Field(description="Its address, an https URL.")
    auth_mount: Text = Field(default="jwt", description="Where its JWT login is mounted.")
    role: Text = Field(description="The role that we log in to.")
    kv_mount: Text = Field(default="secret", description="Where its KV version 2 store is mounted.")
    audience: Text | None = Field(
        default=None, description="The audience of the token that we log in with."
    )
    provider: ProviderName | None = Field(
        default=None,
        description="The platform whose token we log in with, by default the one that is found.",
    )
    path: Text | None = Field(
        default=None, description="The platform's token file, or for `gitlab` the variable's name."
    )
    namespace: Text | None = Field(default=None, description="The namespace, where it has them.")


class OperatorTable(Table):
    """Who may revoke what isn't the agent's own, reinstate and erase."""

    key: Reference = Field(
        default=None,
        description="The operator's private key (PEM). Without it, and without an authority of its own, an agent revokes itself and what is below it.",
    )


class CliTable(Table):
    """What the command line may do."""

    autonomous: bool = Field(
        default=False, description="Whether `token` and `exec` may run for nobody in particular."
    )


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


class Configuration(Table):
    """All of `agent-identity.toml`; `inferred` is what it left to be inferred."""

    agent: AgentTable = Field(default=AgentTable(), description="Who this agent is.")
    issuers: dict[str, IssuerTable] = Field(
        default={}, description="Issuers, by the names that the rest of the file has for them."
    )
    resources: dict[str, ResourceTable] = Field(default={}, description="Resources, by their URIs.")
    policy: PolicyTable | None = Field(default=None, description="Who decides what is allowed.")
    ledger: LedgerTable = Field(default=LedgerTable(), description="Where the record is kept.")
    shared: SharedTable = Field(
        default=SharedTable(), description="What several processes know together."
    )
    session: SessionTable = Field(
        default=SessionTable(), description="How long and how deep sessions go."
    )
    approval: ApprovalTable | None = Field(
        default=None, description="Who is asked when a call needs a person's yes."
    )
    http: HttpTable = Field(default=HttpTable(), description="Limits of what we send and take in.")
    spiffe: SpiffeTable = Field(
        default=SpiffeTable(), description="Where the SPIFFE Workload API is."
    )
    signals: dict[str, SignalsTable] = Field(
        default={}, description="Streams of security events that revoke."
    )
    vault: VaultTable | None = Field(
        default=None, description="The Vault or OpenBao of `vault:` references."
    )
    authority: AuthorityTable | None = Field(
        default=None,
        description="What `agent-identity authority serve` is to an organisation.",
    )
    operator: OperatorTable = Field(
        default=OperatorTable(), description="Who may revoke, reinstate and erase."
    )
    cli: CliTable = Field(default=CliTable(), description="What the command line may do.")

    _inferred: tuple[Inferred, ...] = PrivateAttr(default=())

    @property
    def inferred(self) -> tuple[Inferred, ...]:
        """What the file left out, with reasons, in the order of its tables."""
        return self._inferred

    def with_inferred(self, inferred: tuple[Inferred, ...]) -> Configuration:
        """The same, and what was inferred to get there."""
        copy = self.model_copy()
        copy._inferred = inferred  # noqa: SLF001 - a copy of ourselves
        return copy


_Value: TypeAlias = "Table | tuple[object, ...] | dict[str, object] | str | float | None"


def values_of(table: Table, kind: Kind) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text of a kind in a table and the tables below, with its path."""
    for name, field in type(table).model_fields.items():
        value: _Value = getattr(table, name)
        if kind in field.metadata:
            yield from (((name,), text) for text in _texts(value))
        for path, below in _tables(name, value):
            yield from ((path + rest, text) for rest, text in values_of(below, kind))


def _texts(value: _Value) -> tuple[str, ...]:
    values = value if isinstance(value, tuple) else (value,)
    return tuple(text for text in values if isinstance(text, str))


def _tables(name: str, value: _Value) -> Iterator[tuple[tuple[str, ...], Table]]:
    if isinstance(value, Table):
        yield (name,), value
    elif isinstance(value, dict):
        for key, below in value.items():
            if isinstance(below, Table):
                yield (name, key), below
