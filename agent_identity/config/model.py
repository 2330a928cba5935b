# SPDX-License-Identifier: Apache-2.0
"""Every table and key of `agent-identity.toml`, with the sentence that documents it, and the JSON Schema of the file.

pydantic checks types only. `Kind` marks what a string stands for (a reference, the name of an issuer, a path), so that `checks`
and `reading` find all strings of one kind without a list of keys.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PrivateAttr, StringConstraints
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from agent_identity.keys.algorithms import Algorithm  # noqa: TC001 - pydantic reads it at run time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic_core import core_schema


class Kind(Enum):
    """What a string of the file stands for."""

    REFERENCE = "a reference to a secret"
    ISSUER = "the name of a table of [issuers]"
    URL = "a URL that we connect to: https, or http on loopback"
    ORIGIN = "the origin of such a URL"
    PATTERN = "a glob pattern of files"
    PATH = "the path of a file"
    KEYS = "a URL or file: reference of public keys"
    METADATA = "such a URL, or none"
    REDIRECT = "an http URI on loopback"
    LEDGER = "the URL of a ledger"


Text: TypeAlias = Annotated[str, StringConstraints(min_length=1)]
Texts: TypeAlias = Annotated[tuple[Text, ...], Field(strict=False)]
Reference: TypeAlias = Annotated[Text | None, Kind.REFERENCE]
IssuerName: TypeAlias = Annotated[Text | None, Kind.ISSUER]
Url: TypeAlias = Annotated[Text | None, Kind.URL]
Seconds: TypeAlias = Annotated[float, Field(gt=0)]
Bytes: TypeAlias = Annotated[int, Field(gt=0)]

MAX_DEPTH: Final = 7

NO_METADATA: Final = "none"
"""The `metadata` of an issuer that has none."""


class Table(BaseModel):
    """One table: no unknown keys, strict TOML types, and no values in errors."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
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
    "entra-obo",
    "auth0-token-vault",
    "spiffe-jwt",
    "spiffe-x509",
    "workload-token",
    "api-key",
    "basic",
    "static",
    "client-certificate",
    "chain",
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
    "anonymous",
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
Binding: TypeAlias = Literal["dpop", "mtls", "none", "offered"]

OAUTH_SOURCES: Final[frozenset[str]] = frozenset(
    {
        *("token-exchange", "client-credentials", "jwt-bearer", "id-jag", "identity-chaining"),
        *("authorization-code", "device", "ciba", "refresh-token"),
        *("entra-obo", "auth0-token-vault"),
    }
)
"""Sources that get a token from an issuer."""

LEGACY_SOURCES: Final[frozenset[str]] = frozenset(
    {"api-key", "basic", "static", "client-certificate"}
)
"""Sources for services that know nothing of delegation; they get no delegation data."""

CERTIFICATE_SOURCES: Final[frozenset[str]] = frozenset({"spiffe-x509", "client-certificate"})
"""Sources whose credential is shown in TLS and not in a header."""


class Inferred(NamedTuple):
    """One value that the file leaves out, and why it was chosen."""

    key: str
    value: str
    reason: str


class AgentTable(Table):
    """Who this agent is."""

    name: Text | None = None
    """The agent's name."""
    id: Text | None = None
    """The agent's URI, by default `urn:agent-identity:agent:<name>`."""
    owner: Text | None = None
    """Who is responsible for the agent."""
    grants: IssuerName = None
    """The issuer that signs the first grant of each chain."""
    signer: Reference = None
    """What signs the first grant instead of an issuer: a private key (PEM), or `vault:MOUNT/NAME` for a transit key that stays in the vault."""
    signer_id: Text | None = None
    """The `iss` under which verifiers know the signer, by default `urn:agent-identity:signer:<thumbprint>`; for a key in a vault it ends in a digest of the key's place."""
    key: Reference = None
    """The agent's private key (PEM), for replicas behind one address; by default each process generates its own."""


class EndpointsTable(Table):
    """Endpoints that replace those of an issuer's metadata, by their names in RFC 8414."""

    authorization_endpoint: Url = None
    """Where a person signs in."""
    token_endpoint: Url = None
    """Where tokens are issued."""
    pushed_authorization_request_endpoint: Url = None
    """Where authorization requests are pushed (RFC 9126)."""
    device_authorization_endpoint: Url = None
    """Where the device flow begins (RFC 8628)."""
    backchannel_authentication_endpoint: Url = None
    """Where a sign-in on another device begins (CIBA)."""
    introspection_endpoint: Url = None
    """Where tokens are introspected (RFC 7662)."""
    revocation_endpoint: Url = None
    """Where tokens are revoked (RFC 7009)."""
    registration_endpoint: Url = None
    """Where clients register (RFC 7591)."""


class IssuerTable(Table):
    """One issuer: who it is, what it is trusted for, and the client that we are there."""

    issuer: Annotated[Text, Kind.URL]
    """The issuer's identifier, an https URL."""
    trust: Annotated[tuple[Literal["subjects", "grants"], ...], Field(strict=False)] = ()
    """What it is trusted for: `subjects` for tokens about principals, `grants` for first grants; by default neither."""
    jwks: Annotated[Text | None, Kind.KEYS] = None
    """Its public keys, a URL or `file:PATH`; by default the `jwks_uri` of its metadata."""
    audience: Text | None = None
    """The audience that a principal's token must name, by default the `client_id`."""
    algorithms: Annotated[tuple[Algorithm, ...] | None, Field(strict=False, min_length=1)] = None
    """The signature algorithms accepted from it."""
    evidence: Literal["key", "issuer", "asserted"] | None = None
    """The highest level of evidence of a principal that its grants may claim."""
    token_type: TokenType | None = None
    """The type of the principals' tokens, if the tokens don't show it."""
    subjects_of: Annotated[Texts, Kind.ISSUER] = ()
    """Issuers whose `sub` names the same people there."""
    client_id: Text | None = None
    """Our client id there; an https URL names a client metadata document."""
    client_auth: ClientAuth | None = None
    """How the client authenticates, by default with the key, secret or certificate that it has; `anonymous` sends no `client_id` either."""
    client_key: Reference = None
    """The client's private key (PEM), for assertions or for its certificate."""
    client_key_id: Text | None = None
    """The `kid` under which the issuer knows that key, by default its thumbprint."""
    client_secret: Reference = None
    """The client's secret."""
    client_certificate: Reference = None
    """The client's certificate chain (PEM), followed by its key unless `client_key` is that key."""
    client_assertion_audience: Literal["issuer", "token-endpoint"] = "issuer"
    """The audience of a client assertion; `token-endpoint` is for old issuers and logs a warning."""
    registration: Registration | None = None
    """How the issuer knows the client: `configured` there, by a metadata document (`cimd`), or registered at start (`dynamic`)."""
    registration_token: Reference = None
    """The initial access token of dynamic registration."""
    resource_indicators: bool = True
    """Whether requests name the resource (RFC 8707); some issuers refuse those that do."""
    endpoint_origins: Annotated[Texts, Kind.ORIGIN] = ()
    """Further origins that its endpoints may have."""
    metadata: Annotated[Text | None, Kind.METADATA] = None
    """The URL of its metadata where that isn't a standard one, or `none` for an issuer without metadata."""
    endpoints: EndpointsTable | None = None
    """Endpoints that replace those of its metadata, by their names in RFC 8414."""
    redirect_uri: Annotated[Text | None, Kind.REDIRECT] = None
    """The loopback URI to which a sign-in in a browser comes back, as it is registered at the issuer; by default `/callback` of `127.0.0.1` at a free port."""
    pkce: Literal["advertised", "assume"] = "advertised"
    """Whether the metadata must list PKCE with S256 for a sign-in in a browser; `assume` uses it with issuers whose metadata doesn't say. If the issuer ignores it, a stolen code can be redeemed elsewhere."""
    revoke: Literal["access-token", "none"] = "access-token"
    """What is revoked at the end of a session; `none` is for issuers that would revoke the refresh token too. Tokens then stay valid until they expire."""
    allow_several_audiences: bool = False
    """Accept tokens that are for other services too. Each of those services could use a token that isn't bound at the others."""
    allow_missing_audience: bool = False
    """Accept tokens that name no audience. A token that was issued for another service is then accepted too."""
    allow_client_audience: bool = False
    """Accept tokens whose audience is our client instead of the resource. Every service of that issuer may then accept a token that isn't bound."""
    allow_extra_scopes: bool = False
    """Accept tokens with more scopes than were requested. A tool then holds more rights than it declares."""
    allow_other_subject: bool = False
    """Accept tokens that name the principal differently, as issuers with a name for each client do. A token of another person is then not noticed."""
    allow_bearer_grants: bool = False
    """Accept grants for another issuer (`id-jag`, `identity-chaining`) that it calls bearer tokens. What they are shows in their claims alone."""
    longest_life: Seconds = 86400.0
    """The longest life of its tokens, in seconds. Principals' tokens that live longer are refused, others are used no longer."""

    @property
    def has_metadata(self) -> bool:
        """Whether the issuer's metadata is read."""
        return self.metadata != NO_METADATA


class TransactionTokenTable(Table):
    """The transaction token that is sent with a resource's requests."""

    issuer: Annotated[Text, Kind.ISSUER]
    """The issuer of the transaction token."""
    audience: Text
    """The trust domain in which it is valid."""


class ResourceTable(Table):
    """How to get a credential for one resource, and what is sent with it."""

    source: SourceName | None = None
    """How to get the credential, by default by token exchange if there is an issuer, otherwise from the embedded authority; `chain` gets none, and the resource gets chain and assertion alone."""
    issuer: IssuerName = None
    """The issuer of the token, by default the only one; `discovered` is the one that the resource's own metadata names."""
    via: IssuerName = None
    """The principal's issuer, the first leg of `id-jag` and `identity-chaining`."""
    binding: Binding | None = None
    """What the token is bound to, by default `dpop` for tokens of an issuer, otherwise `none`; for a discovered issuer `offered`, which is `dpop` where its metadata offers that."""
    scopes: Texts | None = None
    """The scopes that may be requested."""
    assertion: Literal["send", "omit"] | None = None
    """Whether the chain and each call's assertion are sent, by default `omit` for legacy sources."""
    audience: Text | None = None
    """The audience to request, if the issuer knows the resource by another name."""
    actor: Literal["grant", "workload", "client", "none"] | None = None
    """The actor token of token exchange, by default `none`; `client` is an access token of our client, by client credentials."""
    subject_token_type: Text | None = None
    """The `subject_token_type` of token exchange, by default that of the principal's token; `access_token`, `id_token`, `jwt`, `refresh_token` or a URI."""
    parameters: dict[str, Text] | None = None
    """Further form members of the requests for this resource's token: the token request, and the request that starts a sign-in. They are not secret: the file and the request show them in clear."""
    authorization_details: Annotated[tuple[dict[str, JsonValue], ...], Field(strict=False)] = ()
    """The authorization details to request (RFC 9396); those of the type `urn:agent-identity:tool` limit tools and their arguments."""
    transaction_token: TransactionTokenTable | None = None
    """The transaction token that is sent too."""
    secret: Reference = None
    """The key of `api-key`."""
    header: Text | None = None
    """The header of `api-key`, by default `Authorization`."""
    scheme: str | None = None
    """The scheme before the key of `api-key`, by default `Bearer` in `Authorization`, otherwise none."""
    username: Text | None = None
    """The user of `basic`."""
    password: Reference = None
    """The password of `basic`."""
    token: Reference = None
    """The token of `static`."""
    certificate: Reference = None
    """The certificate chain (PEM) of `client-certificate`."""
    key: Reference = None
    """The private key (PEM) of that certificate, if it is stored separately."""
    refresh_token: Reference = None
    """Where refresh tokens are stored."""
    provider: ProviderName | None = None
    """The platform whose token proves our identity, by default the one that is detected."""
    path: Text | None = None
    """The platform's token file, or for `gitlab` the variable's name."""
    token_host: Text | None = None
    """The host that issues `github` tokens, for an Enterprise Server."""
    expect: dict[str, str] | None = None
    """Claims that the platform's token must have."""
    assertion_from: Literal["client", "subject", "workload"] | None = None
    """Whose assertion `jwt-bearer` presents, by default the `client`'s own."""
    login_hint_from: Literal["sub", "id-token"] | None = None
    """How `ciba` names the person, by default by the principal's `sub`."""


class PolicyTable(Table):
    """What decides which calls are allowed."""

    engine: Literal["cedar", "authzen", "opa", "grants-only"] | None = None
    """The policy engine; `grants-only` allows what the grants allow."""
    files: Annotated[Texts, Kind.PATTERN] = ()
    """The policy files of `cedar`; paths may contain `*`."""
    url: Url = None
    """The URL of `authzen` or `opa`."""
    path: Text | None = None
    """The rule that `opa` evaluates."""
    mapping: Text | None = None
    """The vocabulary of requests to `authzen`."""
    observe: bool = False
    """Whether a denial by policy is only recorded and the call goes on."""


class LedgerTable(Table):
    """Where the record is kept."""

    url: Annotated[Text, Kind.LEDGER] = "sqlite:"
    """`sqlite:` in the state directory, `sqlite:///relative`, `sqlite:////absolute`, or `memory:`."""
    durability: Literal["process", "power"] = "process"
    """What a record survives: a crash of the process, or a loss of power."""


class SharedTable(Table):
    """State that several processes share."""

    url: Text = "memory:"
    """The store; `memory:` is this process only."""
    max_staleness: Seconds = 10.0
    """The age, in seconds, that known revocations may have."""


class BudgetTable(Table):
    """Limits of one session."""

    calls: Annotated[int, Field(gt=0)] | None = None
    """The most calls."""
    cost: Annotated[float, Field(gt=0)] | None = None
    """The most cost."""
    rate: JsonValue = None
    """The highest rate of calls."""


class SessionTable(Table):
    """Limits of all sessions."""

    lifetime: Seconds = 3600.0
    """The longest life of a session, in seconds."""
    grant_lifetime: Seconds = 900.0
    """The longest life of a grant, in seconds."""
    max_depth: Annotated[int, Field(ge=0, le=MAX_DEPTH)] = 3
    """How many times a session may be delegated on."""
    budget: BudgetTable | None = None
    """Limits of one session."""


class ApprovalTable(Table):
    """Who approves calls that need a person's approval."""

    channel: Text | None = None
    """The channel by which approvers are asked."""
    url: Url = None
    """The URL of that channel."""
    roles: JsonValue = None
    """The approvers of each role."""


class HttpTable(Table):
    """Timeouts and limits of HTTP."""

    deadline: Seconds = 10.0
    """Seconds that getting a credential may take, discovery included."""
    interaction_timeout: Seconds = 300.0
    """Seconds that a person has to sign in or confirm."""
    body_limit: Bytes = 1_048_576
    """The largest response, in bytes."""
    header_limit: Bytes = 8_000
    """The largest header with a delegation chain, in bytes."""
    ca: Annotated[Text | None, Kind.PATH] = None
    """A file of certificate authorities (PEM) that are trusted in addition to the public ones."""
    allow_private: Texts = ()
    """Hosts with private addresses that discovered URLs may name."""


class SpiffeTable(Table):
    """Where the SPIFFE Workload API is."""

    socket: Text | None = None
    """Its socket, by default `SPIFFE_ENDPOINT_SOCKET`."""
    trust_domain: Text | None = None
    """The trust domain that our own SVIDs must have."""


class SignalsTable(Table):
    """A stream of security events that revoke (SSF, CAEP)."""

    issuer: Annotated[Text, Kind.URL]
    """The transmitter of the events."""
    audience: Text
    """The audience of the events."""
    delivery: Literal["poll", "push"] = "poll"
    """How events are delivered."""


class VaultTable(Table):
    """The Vault or OpenBao server that `vault:PATH` references are read from."""

    address: Annotated[Text, Kind.URL]
    """Its address, an https URL."""
    auth_mount: Text = "jwt"
    """Where its JWT login is mounted."""
    role: Text
    """The role to log in with."""
    kv_mount: Text = "secret"
    """Where its KV version 2 store is mounted."""
    audience: Text | None = None
    """The audience of the token that we log in with."""
    provider: ProviderName | None = None
    """The platform whose token we log in with, by default the one that is detected."""
    path: Text | None = None
    """The platform's token file, or for `gitlab` the variable's name."""
    namespace: Text | None = None
    """The namespace, if the server has namespaces."""


class OperatorTable(Table):
    """Who may revoke other agents' sessions, reinstate and erase."""

    key: Reference = None
    """The operator's private key (PEM). Without it, and without an embedded authority, an agent can revoke only itself and what it delegated."""


class McpTable(Table):
    """How MCP servers' tools are known, and our client at issuers that are discovered."""

    pins: Literal["first-use", "required"] = "first-use"
    """Which definition of a server's tool is accepted: the first one that is seen, or only one that `agent-identity mcp pin` accepted."""
    client_id: Text | None = None
    """Our client id at discovered issuers; an https URL names a client metadata document. Without it, or where an issuer reads no such documents, each agent registers itself."""
    client_key: Reference = None
    """The private key (PEM) of that client, by default it has none."""
    client_key_id: Text | None = None
    """The `kid` of that key, by default its thumbprint."""
    redirect_uri: Annotated[Text | None, Kind.REDIRECT] = None
    """The loopback URI to which a sign-in in a browser comes back, by default `/callback` of `127.0.0.1` at a port that is chosen once for each resource."""


class CliTable(Table):
    """What the command line may do."""

    autonomous: bool = False
    """Whether `token` and `exec` may run without a principal."""


ClientProofName: TypeAlias = Literal["private_key_jwt", "spiffe_jwt", "workload_token"]


class AuthorityClientTable(Table):
    """One client of the authority: which agent it is, how it authenticates, and what it may get for whom."""

    agent: Text | None = None
    """The agent (`act.sub`), a name or a URI, by default the table's name."""
    auth: ClientProofName = "private_key_jwt"
    """How the client authenticates."""
    jwks: Annotated[Text | None, Kind.KEYS] = None
    """The client's public keys, or for `spiffe_jwt` the bundle of its trust domain; a URL or `file:PATH`."""
    subject: Text | None = None
    """The SPIFFE ID of `spiffe_jwt`, or the `sub` of the platform's token of `workload_token`."""
    issuer: IssuerName = None
    """The issuer of the platform's token for `workload_token`."""
    claims: dict[str, str] | None = None
    """Further claims that the platform's token must have."""
    subject_issuers: Annotated[Texts | None, Kind.ISSUER] = None
    """The issuers whose principals the client may bring, by default all with `trust = ["subjects"]`."""
    subject_clients: Texts = ()
    """The clients (`azp`, `client_id`) that a principal's token may name; by default it must name none."""
    # not `Texts`: the oldest pydantic gives a field without default that of another field of the same alias
    resources: Annotated[tuple[Text, ...], Field(strict=False, min_length=1)]
    """The resources that its grants may name."""
    scopes: Texts = ()
    """The scopes that its grants may have, by default none."""
    max_depth: Annotated[int, Field(ge=0, le=MAX_DEPTH)] = 3
    """How many times its grants may be delegated on."""


class AuthorityTable(Table):
    """`agent-identity authority serve` as an organisation's anchor, in front of its identity providers."""

    issuer: Url = None
    """The URL of the authority, by default the one on loopback where it listens."""
    audiences: Texts = ()
    """The audiences that a principal's token may name, by default the authority's `issuer`."""
    registration: bool = False
    """Whether agents may also register themselves; they act only for principals of the authority's own directory."""
    rate: Annotated[int, Field(gt=0)] = 600
    """The highest number of requests of one client in a minute."""
    clients: dict[str, AuthorityClientTable] = {}
    """Its clients, by their `client_id`."""


class Configuration(Table):
    """The whole `agent-identity.toml`, and what was inferred from it."""

    agent: AgentTable = AgentTable()
    """Who this agent is."""
    issuers: dict[str, IssuerTable] = {}
    """The issuers, each by the name that the rest of the file uses."""
    resources: dict[str, ResourceTable] = {}
    """The resources, by URI."""
    policy: PolicyTable | None = None
    """What decides which calls are allowed."""
    ledger: LedgerTable = LedgerTable()
    """Where the record is kept."""
    shared: SharedTable = SharedTable()
    """State that several processes share."""
    session: SessionTable = SessionTable()
    """Limits of all sessions."""
    approval: ApprovalTable | None = None
    """Who approves calls that need a person's approval."""
    http: HttpTable = HttpTable()
    """Timeouts and limits of HTTP."""
    spiffe: SpiffeTable = SpiffeTable()
    """Where the SPIFFE Workload API is."""
    signals: dict[str, SignalsTable] = {}
    """Streams of security events that revoke."""
    vault: VaultTable | None = None
    """The Vault or OpenBao server of `vault:` references."""
    authority: AuthorityTable | None = None
    """`agent-identity authority serve` as an organisation's anchor."""
    operator: OperatorTable = OperatorTable()
    """Who may revoke other agents' sessions, reinstate and erase."""
    mcp: McpTable = McpTable()
    """How MCP servers' tools are known, and our client at issuers that are discovered."""
    cli: CliTable = CliTable()
    """What the command line may do."""

    _inferred: tuple[Inferred, ...] = PrivateAttr(default=())

    @property
    def asked_issuers(self) -> set[str]:
        """The names of the issuers that are asked for tokens or grants; of the others only the keys are read."""
        names = {self.agent.grants}
        for table in self.resources.values():
            names |= {table.issuer, table.via}
            names |= {table.transaction_token.issuer} if table.transaction_token else set()
        return {name for name in names if name is not None}

    @property
    def inferred(self) -> tuple[Inferred, ...]:
        """The inferred values with their reasons, in the order of the tables."""
        return self._inferred

    def with_inferred(self, inferred: tuple[Inferred, ...]) -> Configuration:
        """A copy that knows what was inferred."""
        copy = self.model_copy()
        copy._inferred = inferred  # noqa: SLF001 - a copy of ourselves
        return copy


_Value: TypeAlias = "Table | tuple[object, ...] | dict[str, object] | str | float | None"


def values_of(table: Table, kind: Kind) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every string of a kind in a table and the tables below it, with its path."""
    for name, field in type(table).model_fields.items():
        value: _Value = getattr(table, name)
        if kind in field.metadata:
            yield from (((name,), text) for text in _texts(value))
        for path, below in tables_in(name, value):
            yield from ((path + rest, text) for rest, text in values_of(below, kind))


def _texts(value: _Value) -> tuple[str, ...]:
    values = value if isinstance(value, tuple) else (value,)
    return tuple(text for text in values if isinstance(text, str))


def tables_in(name: str, value: object) -> Iterator[tuple[tuple[str, ...], Table]]:
    """The table, or the tables by name, that are the value of a key, with their paths."""
    if isinstance(value, Table):
        yield (name,), value
    elif isinstance(value, dict):
        for key, below in value.items():  # pyright: ignore[reportUnknownVariableType] - TOML's keys are text
            if isinstance(below, Table):
                yield (name, key), below


def configuration_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the file, with a description of each key."""
    return {
        "$schema": _TomlSchema.schema_dialect,
        **Configuration.model_json_schema(schema_generator=_TomlSchema),
        "title": "agent-identity.toml",
        "description": "Who an agent is, where it gets credentials, and what decides which calls are allowed.",
    }


class _TomlSchema(GenerateJsonSchema):
    """TOML has no null, so no type and no default is one."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        generated = super().default_schema(schema)
        if generated.get("default") is None or isinstance(generated["default"], dict):
            generated.pop("default", None)
        return generated

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002 - the key is the title
        return False
