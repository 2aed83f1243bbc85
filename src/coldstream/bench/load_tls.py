"""A throw-away certificate for 127.0.0.1, and what every contender needs in its environment to trust it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coldstream.errors import MissingExtra

# OpenSSL, and with it Python's ssl (gcsfs, we), Run:ai's streamer; curl; requests (google-cloud-storage).
_VARIABLES = ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE")


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM files: the authority's certificate, the server's, and the server's key."""

    authority: Path
    server: Path
    key: Path

    @property
    def environment(self) -> dict[str, str]:
        """The authority, by every name under which a contender looks for one."""
        return dict.fromkeys(_VARIABLES, str(self.authority))


def make_certificate(folder: Path) -> Certificate:
    """An authority of its own, whose key is kept nowhere, and a certificate for 127.0.0.1 (ECDSA, P-256).

    Raises:
        MissingExtra: trustme is not installed.
    """
    try:
        import trustme
    except ImportError as exc:
        raise MissingExtra("TLS needs a throw-away certificate; run: pip install 'coldstream[bench]'") from exc
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    found = Certificate(folder / "authority.pem", folder / "server.pem", folder / "key.pem")
    authority.cert_pem.write_to_path(str(found.authority))
    found.server.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    found.key.touch(mode=0o600)
    issued.private_key_pem.write_to_path(str(found.key))
    return found
