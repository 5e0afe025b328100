"""Certificates as files and as TLS settings of servers, for the tests of upstreams."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass
class Files:
    """A CA, a certificate of 127.0.0.1 for servers, and one for the proxy, as PEM files in a folder."""

    folder: Path

    def __post_init__(self) -> None:
        self.authority = trustme.CA()
        self.ca = self.folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca)
        client = self.authority.issue_cert("proxy@test.invalid")
        self.cert, self.key, self.both = (self.folder / name for name in ("cert.pem", "key.pem", "both.pem"))
        client.cert_chain_pems[0].write_to_path(self.cert)
        client.private_key_pem.write_to_path(self.key)
        client.private_key_and_cert_chain_pem.write_to_path(self.both)

    def server(self, *, alpn: str = "http/1.1", asks: bool = False) -> ssl.SSLContext:
        """Settings of a server on 127.0.0.1; with `asks` it takes only clients with a certificate of the CA."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert("127.0.0.1").configure_cert(context)
        context.set_alpn_protocols([alpn])
        if asks:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca)
        return context
