"""SSH keys that are made for callers. The private half leaves in a reply and is kept nowhere."""

import base64
import hashlib
from typing import NamedTuple


class NewKey(NamedTuple):
    """A key pair, as its two users need it."""

    private_key: str
    """For OpenSSH's `-i`, without a passphrase."""
    fingerprint: str
    """Of the public half, as OpenSSH prints it: `SHA256:…`."""


def new_key() -> NewKey:
    """Make an ed25519 key pair."""
    # Only now: the library takes 8 MB, and most services never make a key.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return NewKey(private.decode(), f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}")
