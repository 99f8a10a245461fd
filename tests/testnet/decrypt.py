#!/usr/bin/python3
"""Verify and decrypt an onion service descriptor: decrypt.py ADDRESS < descriptor > json

Uses Debian's python3-stem, which shares no code with the software that made the descriptor.
"""
import base64
import json
import sys

try:
    from cryptography.hazmat.primitives import serialization
    from stem.client.datatype import LinkByFingerprint, LinkByEd25519, LinkByIPv4, LinkByIPv6
    from stem.descriptor.hidden_service import HiddenServiceDescriptorV3
except ImportError as missing:
    sys.exit(f"{missing}; scripts/install.sh installs python3-stem")


def hexed(key):
    """Return a key, given as bytes or as an object, as hexadecimal digits."""
    if not isinstance(key, bytes):
        raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
        key = key.public_bytes(*raw)
    return key.hex()


def intro_point(point):
    """Return the relay and the keys of an introduction point."""
    said = dict(addresses=[], rsa_fingerprint=None, ed25519_id=None)
    for link in point.link_specifiers:
        if isinstance(link, (LinkByIPv4, LinkByIPv6)):
            said["addresses"].append(f"{link.address}:{link.port}")
        elif isinstance(link, LinkByFingerprint):
            said["rsa_fingerprint"] = link.value.hex().upper()
        elif isinstance(link, LinkByEd25519):
            said["ed25519_id"] = base64.b64encode(link.value).decode().rstrip("=")
    said["onion_key"] = hexed(point.onion_key())
    said["auth_key"] = hexed(point.auth_key_cert.key)
    said["enc_key"] = hexed(point.enc_key())
    return said


def main():
    """Read, verify, decrypt, print."""
    address = sys.argv[1].removesuffix(".onion")
    # With validate=True, stem checks the signature and the certificate of the key that made it.
    descriptor = HiddenServiceDescriptorV3.from_str(sys.stdin.read(), validate=True)
    inner = descriptor.decrypt(address)
    print(json.dumps(dict(
        revision=descriptor.revision_counter,
        lifetime_minutes=descriptor.lifetime,
        blinded_key=hexed(descriptor.signing_cert.signing_key()),
        intro_points=[intro_point(point) for point in inner.introduction_points],
    )))


try:
    main()
except ValueError as wrong:
    sys.exit(str(wrong))
