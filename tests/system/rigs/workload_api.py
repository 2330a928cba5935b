# SPDX-License-Identifier: Apache-2.0
"""A SPIFFE Workload API on a unix socket: real SVIDs of a trust domain in memory, over the stubs that `spiffe` ships.

    python workload_api.py SOCKET SPIFFE_ID SECONDS FOLDER

The X.509-SVID lives for so many seconds and is renewed at half of them. `bundle.pem` and `bundle.json` are put into the
folder, and then `{"ready": true}` is printed. Its client is somebody else's, and so checks it: an SVID that isn't one is
refused there.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from spiffe._proto import workload_pb2 as messages  # private; requirements/rigs.in pins it
from spiffe._proto import workload_pb2_grpc as stubs

DER = serialization.Encoding.DER
HEADER = ("workload.spiffe.io", "true")


class TrustDomain:
    """Certificates and tokens of one trust domain."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._jwt_key = ec.generate_private_key(ec.SECP256R1())
        self._kid = secrets.token_hex(8)
        self._subject = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, name)])
        self.certificate = self._signed(
            self._subject, self._key, f"spiffe://{name}", 86_400, ca=True
        )

    def x509_svid(self, spiffe_id: str, seconds: int) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._signed(x509.Name([]), key, spiffe_id, seconds, ca=False)
        plain = serialization.NoEncryption()
        private = key.private_bytes(DER, serialization.PrivateFormat.PKCS8, plain)
        return certificate.public_bytes(DER), private

    def jwt_svid(self, spiffe_id: str, audience: list[str], seconds: int) -> str:
        now = int(time.time())
        claims = {"sub": spiffe_id, "aud": audience, "iat": now, "exp": now + seconds}
        return jwt.encode(claims, self._jwt_key, "ES256", headers={"kid": self._kid, "typ": "JWT"})

    def jwks(self) -> str:
        key = json.loads(ECAlgorithm.to_jwk(self._jwt_key.public_key()))
        return json.dumps({"keys": [key | {"kid": self._kid, "use": "jwt-svid"}]})

    def _signed(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        uri: str,
        seconds: int,
        *,
        ca: bool,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        usage = x509.KeyUsage(
            digital_signature=not ca,
            key_cert_sign=ca,
            crl_sign=ca,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=30))
            .not_valid_after(now + timedelta(seconds=seconds))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(names, critical=not ca)
        )
        if not ca:
            both = [x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
        return builder.sign(self._key, hashes.SHA256())


class WorkloadApi(stubs.SpiffeWorkloadAPIServicer):
    """What a workload asks for: its SVIDs, and the bundles of its trust domain."""

    def __init__(self, domain: TrustDomain, spiffe_id: str, seconds: int) -> None:
        self._domain = domain
        self._spiffe_id = spiffe_id
        self._seconds = seconds

    def FetchX509SVID(self, request, context):
        _check_header(context)
        while context.is_active():
            certificate, key = self._domain.x509_svid(self._spiffe_id, self._seconds)
            svid = messages.X509SVID(
                spiffe_id=self._spiffe_id,
                x509_svid=certificate,
                x509_svid_key=key,
                bundle=self._domain.certificate.public_bytes(DER),
            )
            yield messages.X509SVIDResponse(svids=[svid])
            _wait(context, self._seconds / 2)

    def FetchX509Bundles(self, request, context):
        _check_header(context)
        bundle = self._domain.certificate.public_bytes(DER)
        yield messages.X509BundlesResponse(bundles={f"spiffe://{self._domain.name}": bundle})
        _wait(context)

    def FetchJWTSVID(self, request, context):
        _check_header(context)
        if not request.audience:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "audience must be specified")
        token = self._domain.jwt_svid(self._spiffe_id, list(request.audience), self._seconds)
        svid = messages.JWTSVID(spiffe_id=self._spiffe_id, svid=token)
        return messages.JWTSVIDResponse(svids=[svid])

    def FetchJWTBundles(self, request, context):
        _check_header(context)
        bundle = self._domain.jwks().encode()
        yield messages.JWTBundlesResponse(bundles={f"spiffe://{self._domain.name}": bundle})
        _wait(context)


def _check_header(context) -> None:
    if HEADER not in context.invocation_metadata():
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")


def _wait(context, seconds: float = float("inf")) -> None:
    """In short steps, so that a stream that was closed frees its thread."""
    end = time.monotonic() + seconds
    while context.is_active() and time.monotonic() < end:
        time.sleep(0.05)


def main(socket: str, spiffe_id: str, seconds: str, folder: str) -> None:
    domain = TrustDomain(spiffe_id.split("/")[2])
    server = grpc.server(futures.ThreadPoolExecutor(16))
    stubs.add_SpiffeWorkloadAPIServicer_to_server(
        WorkloadApi(domain, spiffe_id, int(seconds)), server
    )
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    Path(folder, "bundle.pem").write_bytes(
        domain.certificate.public_bytes(serialization.Encoding.PEM)
    )
    Path(folder, "bundle.json").write_text(domain.jwks())
    print(json.dumps({"ready": True}), flush=True)  # noqa: T201 - what whoever started it waits for
    server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])
