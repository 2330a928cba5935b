# SPDX-License-Identifier: Apache-2.0
"""django-oauth-toolkit on loopback, in an environment of its own, mounted at /o/ as its tutorial does.

`PORT`, `REDIRECT_URI` and `FOLDER`, for its database, are variables.
"""

import os
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIServer, make_server

import django
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from django.conf import settings
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application

PORT = int(os.environ["PORT"])
KEY = rsa.generate_private_key(65537, 2048).private_bytes(
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
)
CONTEXT = ("django.template.context_processors.request",)

settings.configure(
    SECRET_KEY="rig" * 20,
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    USE_TZ=True,
    LOGIN_URL="/login/",
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],  # the quick one, for a test
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "oauth2_provider",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": f"{os.environ['FOLDER']}/database",
        }
    },
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {"context_processors": CONTEXT},
        }
    ],
    OAUTH2_PROVIDER={
        "OIDC_ENABLED": True,
        "OIDC_RSA_PRIVATE_KEY": KEY.decode(),
        "SCOPES": {"openid": "Who you are", "invoices:read": "Read invoices"},
        "ALLOWED_REDIRECT_URI_SCHEMES": ["http"],
        "OAUTH_DEVICE_VERIFICATION_URI": f"http://127.0.0.1:{PORT}/o/device/",
        "DEVICE_FLOW_INTERVAL": 1,
    },
)
django.setup()

from django.contrib.auth.models import User  # noqa: E402 - models need the settings
from django.contrib.auth.views import LoginView  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.template import Context, Template  # noqa: E402
from django.urls import include, path  # noqa: E402
from oauth2_provider.models import Application  # noqa: E402

PAGE = "<form method=post><input type=hidden name=csrfmiddlewaretoken value={{ csrf_token }}>{{ form }}</form>"


class SignIn(LoginView):
    """Django's own view, without a site's template."""

    def render_to_response(self, context, **_):
        from django.middleware.csrf import get_token

        context |= {"csrf_token": get_token(self.request)}
        return HttpResponse(Template(PAGE).render(Context(context)))


urlpatterns = [path("o/", include("oauth2_provider.urls")), path("login/", SignIn.as_view())]

call_command("migrate", verbosity=0)
User.objects.create_user("alice", password="wonder")
for client_id, grant_type in (
    ("invoice-bot", "authorization-code"),
    ("nightly-bot", "client-credentials"),
    ("device-bot", "urn:ietf:params:oauth:grant-type:device_code"),
):
    Application.objects.create(
        name=client_id,
        client_id=client_id,
        client_secret="s3cret",
        client_type="confidential",
        authorization_grant_type=grant_type,
        redirect_uris=os.environ["REDIRECT_URI"],
        algorithm="RS256",
    )


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


make_server("127.0.0.1", PORT, get_wsgi_application(), server_class=Server).serve_forever()
