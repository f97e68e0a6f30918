"""Loads the TLS certificate of the server, and the authorities of client certificates. Changed files are loaded again.

This module uses files and OpenSSL. This module does not use sockets.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from foldserve.service.access.files import stamp
from foldserve.service.errors import StartError

log = logging.getLogger("foldserve")


class Tls:
    """Creates the TLS context for the next handshake.

    The context uses the files as the last call of `refresh` has read them.

    certificate: a PEM file that contains the certificate of the server, followed by the certificates of its issuers.
    key: the file with the private key; None if the key is in the file of the certificate. client_ca: a file with the
    certificates of the authorities that sign client certificates; None if clients need no certificate.
    """

    def __init__(self, certificate: Path, key: Path | None, client_ca: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._files = [file for file in (certificate, key, client_ca) if file is not None]
        self._seen = stamp(self._files)
        self.context = self._load()

    def refresh(self) -> None:
        """Load the files again if a file has changed.

        After an error, the old certificates stay in use, and the reason is logged.
        """
        seen = stamp(self._files)
        if seen != self._seen:
            self._seen = seen
            try:
                self.context = self._load()
            except StartError as error:
                log.error("the TLS certificate stays as it was: %s", error)
            else:
                log.info("loaded the TLS certificate %s", self._certificate)

    def _load(self) -> ssl.SSLContext:
        """Load the files. Raises `StartError`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise StartError(f"can't use the TLS certificate {self._certificate}: {_reason(error)}") from error
        if self._client_ca is not None:
            try:
                context.load_verify_locations(self._client_ca)
            except (OSError, ValueError) as error:
                raise StartError(f"can't use the authorities in {self._client_ca}: {_reason(error)}") from error
            context.verify_mode = ssl.CERT_REQUIRED
            # TLS sessions can't be resumed, because a resumed session does not check the client certificate against the
            # current authorities.
            context.num_tickets = 0
            context.options |= ssl.OP_NO_TICKET
        return context


def _no_password() -> str:
    """Refuse an encrypted key, because OpenSSL would ask for its password on the terminal."""
    raise ValueError("its key is encrypted")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not PEM").replace("_", " ").lower()
    return (isinstance(error, OSError) and error.strerror) or str(error)
