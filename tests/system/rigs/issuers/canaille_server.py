# SPDX-License-Identifier: Apache-2.0
"""Canaille on loopback, in memory, in an environment of its own: one person, and clients that may register themselves.

`PORT` and `REDIRECT_URI` are variables.
"""

import os
import threading
import time
from datetime import UTC, datetime

from canaille import create_app
from canaille.app import models
from canaille.backends import Backend
from werkzeug.serving import make_server

PORT = int(os.environ["PORT"])

app = create_app(
    {
        "SECRET_KEY": "rig",
        "SERVER_NAME": f"127.0.0.1:{PORT}",
        "PREFERRED_URL_SCHEME": "http",
        "SESSION_COOKIE_SECURE": False,
        "CANAILLE": {"DATABASE": "memory", "SMTP": None},
        "CANAILLE_OIDC": {"DYNAMIC_CLIENT_REGISTRATION_OPEN": True, "TRUSTED_DOMAINS": ""},
    }
)
with app.app_context():
    store = Backend.instance
    names = {"user_name": "alice", "formatted_name": "Alice", "family_name": "Liddell"}
    store.save(models.User(**names, emails=["alice@example.com"], password="wonder"))
    client = models.Client(
        client_id="invoice-bot",
        client_secret="s3cret",
        client_name="Invoice bot",
        client_id_issued_at=datetime.now(UTC),
        token_endpoint_auth_method="client_secret_basic",
        grant_types=["authorization_code", "refresh_token", "client_credentials"],
        response_types=["code"],
        redirect_uris=[os.environ["REDIRECT_URI"]],
        scope=["openid", "profile"],
    )
    store.save(client)
    client.audience = [client]  # as its own pages and its registration do
    store.save(client)

one_at_a_time = threading.Lock()


def one_token_a_second(environ, start_response):
    """Its tokens have no `jti`. Two of one person in one second would be the same text, and revoked together."""
    if environ["PATH_INFO"] != "/oauth/token":
        return app(environ, start_response)
    with one_at_a_time:
        answer = app(environ, start_response)
        issued = int(time.time())
        while int(time.time()) <= issued:
            time.sleep(0.05)
        return answer


make_server("127.0.0.1", PORT, one_token_a_second, threaded=True).serve_forever()
