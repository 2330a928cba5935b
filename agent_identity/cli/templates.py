# SPDX-License-Identifier: Apache-2.0
"""What `agent-identity init` writes, by kind of issuer: short files, each key with its reason.

`@NAME@` and `@ISSUER@` stand for TOML texts. A test reads every one of them. What nobody here has run against the vendor's
own service says so in the file: it follows their documentation and the standards, and an issuer may want something else.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["CLIENT_KEY", "EC", "KINDS", "RSA", "Template"]

CLIENT_KEY: Final = "client.pem"
EC: Final = "-algorithm EC -pkeyopt ec_paramgen_curve:P-256"
RSA: Final = "-algorithm RSA -pkeyopt rsa_keygen_bits:2048"
"""How `openssl genpkey` makes a key, by what issuers take."""


class Template(NamedTuple):
    """One kind. `has_issuer` says whether an issuer's URL belongs into it, `key` how the client's key beside it is made."""

    summary: str
    text: str
    has_issuer: bool = True
    key: str | None = None


_UNVERIFIED: Final = """\
# Not run against @VENDOR@ itself: this follows the documentation. `agent-identity doctor` shows what is different there.
"""
_AGENT: Final = """\
[agent]
name = @NAME@
# owner = "team@example.com"          # who answers for the agent

"""
_END: Final = """
[policy]
engine = "grants-only"                # whatever the grants allow; a program may pass a policy of its own to from_config

[ledger]
url = "sqlite:"                       # in the state directory, AGENT_IDENTITY_STATE_DIR says where that is

# [cli]
# autonomous = true                   # lets `agent-identity token` and `exec` act for nobody in particular
"""
_CI_END: Final = _END.replace("# [cli]\n# autonomous = true  ", "[cli]\nautonomous = true    ")
_KEY: Final = f"""\
client_key = "file:{CLIENT_KEY}"        # beside this file: openssl genpkey {EC} -out {CLIENT_KEY}
"""
_RESOURCE: Final = """
[resources."https://billing.example"] # the API to be called, one table each
scopes = ["invoices:read"]            # the most that may be asked for
"""

_EMBEDDED: Final = (
    """\
# An authority in this process: it signs the grants and issues the tokens, and services verify them by its keys.

"""
    + _AGENT
    + _RESOURCE.lstrip()
    + _END
)

_OIDC: Final = (
    """\
# One issuer (OpenID Connect or RFC 8414): it signs people in, and exchanges their tokens for those of the resources (RFC 8693).

"""
    + _AGENT
    + """\
[issuers.idp]
issuer = @ISSUER@
trust = ["subjects"]                  # its tokens say on whose behalf the agent acts
client_id = @NAME@
"""
    + _KEY
    + _RESOURCE
    + """\
# binding = "none"                    # for issuers without DPoP (RFC 9449); with it a stolen token opens nothing
"""
    + _END
)

_KEYCLOAK: Final = (
    """\
# Keycloak: the issuer is https://HOST/realms/REALM. The client needs "Signed JWT" as authenticator and "Standard token exchange".
"""
    + _UNVERIFIED.replace("@VENDOR@", "Keycloak")
    + "\n"
    + _AGENT
    + """\
[issuers.keycloak]
issuer = @ISSUER@
trust = ["subjects"]
client_id = @NAME@
"""
    + _KEY
    + _RESOURCE
    + """\
audience = "billing"                  # Keycloak knows a resource by the id of its client
binding = "none"                      # token exchange there is said to leave DPoP tokens unbound, which we refuse
"""
    + _END
)

_OKTA: Final = (
    """\
# Okta, cross-app access: the org's authorization server gives an ID-JAG, and the application's own server a token for it.
# The issuer is https://ORG.okta.com, without a path.
"""
    + _UNVERIFIED.replace("@VENDOR@", "Okta")
    + "\n"
    + _AGENT
    + """\
[issuers.okta]                        # where people sign in
issuer = @ISSUER@
trust = ["subjects"]
client_id = @NAME@                    # the client id there
"""
    + _KEY
    + """\
client_assertion_audience = "token-endpoint" # as Okta's documentation has it; warns at start

[issuers.app]                         # the application's authorization server, which trusts Okta
issuer = "https://auth.app.example"
client_id = @NAME@
client_key = "file:client.pem"        # or client_secret = "env:APP_SECRET"

[resources."https://api.app.example"]
source = "id-jag"
via = "okta"
issuer = "app"
scopes = ["invoices:read"]
binding = "none"                      # or "dpop", where the application's server has it
assertion = "omit"                    # another company gets no chain and no purpose; "send" where it verifies them
"""
    + _END
)

_ENTRA: Final = (
    """\
# Microsoft Entra ID: the issuer is https://login.microsoftonline.com/TENANT/v2.0, with the tenant's id.
"""
    + _UNVERIFIED.replace("@VENDOR@", "Entra ID")
    + """\
# It verifies people's tokens, and the agent calls as its Azure workload. Entra's own on-behalf-of flow isn't spoken here: it
# wants a parameter of its own (requested_token_use), and refuses the standard one that names the resource (RFC 8707).

"""
    + _AGENT
    + """\
[issuers.entra]                       # checks people's tokens, and is asked for nothing
issuer = @ISSUER@
trust = ["subjects"]
audience = "00000000-0000-0000-0000-000000000000" # the app registration's client id
endpoint_origins = ["https://mtlsauth.microsoft.com"]

[resources."https://billing.example"] # by the managed identity's token, or the pod's federated one
source = "workload-token"
provider = "azure"
audience = "api://billing"            # the API's application id URI
"""
    + _END
)

_AUTH0: Final = (
    """\
# Auth0: the issuer is https://TENANT.auth0.com/ with the slash at its end, which counts.
"""
    + _UNVERIFIED.replace("@VENDOR@", "Auth0")
    + "\n"
    + _AGENT
    + f"""\
[issuers.auth0]
issuer = @ISSUER@
trust = ["subjects"]
audience = "https://agent.example"    # the agent's own API identifier, for which people's tokens are made
client_id = @NAME@                    # the application's client id
client_key = "file:{CLIENT_KEY}"        # RSA, Auth0 takes no ES256: openssl genpkey {RSA} -out {CLIENT_KEY}

[resources."https://billing.example"]
source = "token-exchange"             # on-behalf-of token exchange, which the application needs
audience = "https://billing.example"  # the API's identifier
scopes = ["invoices:read"]
binding = "none"
"""
    + _END
)

_SPIFFE: Final = (
    """\
# SPIFFE: the workload's SVID instead of a stored secret, and an issuer that takes it (draft-ietf-oauth-spiffe-client-auth).

"""
    + _AGENT
    + """\
[spiffe]
# socket = "unix:/run/spire/sockets/agent.sock" # else what SPIFFE_ENDPOINT_SOCKET says

[issuers.idp]
issuer = @ISSUER@
trust = ["subjects"]
client_id = "spiffe://example.org/agent"
client_auth = "spiffe_jwt"
"""
    + _RESOURCE
    + """
[resources."https://internal.example"] # a service that takes the SVID itself
source = "spiffe-jwt"
"""
    + _END
)

_GITHUB: Final = (
    """\
# GitHub Actions: the job's own OIDC token is exchanged for one of the resource (RFC 7523), so that no secret is stored.
# The workflow needs `permissions: id-token: write`.
"""
    + _UNVERIFIED.replace("@VENDOR@", "GitHub")
    + "\n"
    + _AGENT
    + """\
[issuers.idp]                         # the issuer that trusts https://token.actions.githubusercontent.com
issuer = @ISSUER@
client_id = @NAME@
client_auth = "none"                  # the job's token is all the proof

[resources."https://billing.example"]
source = "jwt-bearer"
assertion_from = "workload"
provider = "github"
# expect = { repository = "acme/books", ref = "refs/heads/main" } # claims that the job's token has to have
scopes = ["invoices:read"]
binding = "none"                      # `agent-identity exec` hands out what another program can use; else "dpop"
"""
    + _CI_END
)

_KUBERNETES: Final = (
    """\
# Kubernetes: the pod's projected service account token is exchanged for one of the resource (RFC 7523).
# Project it for the issuer: serviceAccountToken: { audience: <the issuer's URL>, expirationSeconds: 600, path: token }
"""
    + _UNVERIFIED.replace("@VENDOR@", "a cluster")
    + "\n"
    + _AGENT
    + """\
[issuers.idp]                         # the issuer that trusts the cluster's service account issuer
issuer = @ISSUER@
client_id = @NAME@
client_auth = "none"                  # the pod's token is all the proof

[resources."https://billing.example"]
source = "jwt-bearer"
assertion_from = "workload"
provider = "kubernetes"
path = "/var/run/secrets/tokens/token"
scopes = ["invoices:read"]
binding = "none"                      # `agent-identity exec` hands out what another program can use; else "dpop"
"""
    + _CI_END
)

KINDS: Final[dict[str, Template]] = {
    "embedded": Template("an authority in this process, no account", _EMBEDDED, has_issuer=False),
    "oidc": Template("one issuer by the standards, token exchange with DPoP", _OIDC, key=EC),
    "keycloak": Template("a Keycloak realm", _KEYCLOAK, key=EC),
    "okta": Template("Okta with cross-app access (ID-JAG)", _OKTA, key=EC),
    "entra": Template("Microsoft Entra ID", _ENTRA),
    "auth0": Template("an Auth0 tenant", _AUTH0, key=RSA),
    "spiffe": Template("a SPIFFE workload and an issuer that takes its SVID", _SPIFFE),
    "github-actions": Template("a job's own token, no stored secret", _GITHUB),
    "kubernetes": Template("a pod's own token, no stored secret", _KUBERNETES),
}
