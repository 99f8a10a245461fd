#!/usr/bin/python3
"""Checks protocol.json by the rules of docs/PROTOCOL.md alone: a second implementation of what is on the wire.

    /usr/bin/python3 tests/vectors/check.py [tests/vectors/protocol.json]

Needs Python's standard library and `cryptography`. Section numbers are the document's. Fails at the first thing that is
not as the document says.
"""

import base64
import hashlib
import ipaddress
import json
import math
import pathlib
import sys

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

unhex = bytes.fromhex


def sha3(*parts):
    return hashlib.sha3_256(b"".join(parts)).digest()


def be(number, size=8):
    return number.to_bytes(size, "big")


def equal(what, got, expected):
    if got != expected:
        sys.exit(f"{what}: by the document {got!r}, in the file {expected!r}")


# 1. CBOR, as much of it as is in use.


class Cbor:
    """Reads one item after the other; refuses what is not in its shortest form."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, size):
        taken = self.data[self.at : self.at + size]
        if len(taken) != size:
            raise ValueError("cut short")
        self.at += size
        return taken

    def argument(self, short):
        if short < 24:
            return short
        if short > 27:
            raise ValueError("indefinite or reserved length")
        size = 1 << (short - 24)
        number = int.from_bytes(self.take(size), "big")
        if number < (24 if size == 1 else 1 << (4 * size)):
            raise ValueError("not the shortest form")
        return number

    def item(self):
        first = self.take(1)[0]
        major, short = first >> 5, first & 31
        if major == 7:
            return {20: False, 21: True, 22: None}[short]
        size = self.argument(short)
        if major == 0:
            return size
        if major == 2:
            return self.take(size)
        if major == 3:
            return self.take(size).decode()
        if major == 4:
            return [self.item() for _ in range(size)]
        if major == 5:
            return {self.item(): self.item() for _ in range(size)}
        raise ValueError(f"major type {major}")


def decode(message):
    """A message: the version byte, one item, nothing after it."""
    equal("version byte", message[:1], b"\x01")
    cbor = Cbor(message[1:])
    value = cbor.item()
    equal("bytes after the item", len(message) - 1 - cbor.at, 0)
    return value


EXAMPLES = {
    "0": 0, "23": 23, "24": 24, "255": 255, "256": 256, "65536": 65536, "4294967296": 4294967296,
    "true": True, "none": None, "byte string h'0102'": b"\x01\x02", "list [1, 2]": [1, 2], "pair (1, 1)": [1, 1],
    "variant without a value": "worker", "variant with fields": {"Expired": {"ago": 10}},
    "variant with a value": {"Version": 2},
}  # fmt: skip


def check_codec(vectors):
    equal("examples", [example["what"] for example in vectors["codec"]], list(EXAMPLES))
    for example in vectors["codec"]:
        value = EXAMPLES[example["what"]]
        equal(example["what"], encode(value).hex(), example["bytes"])
        equal(example["what"], decode(unhex(example["bytes"])), value)


def head(major, number):
    if number < 24:
        return bytes([major << 5 | number])
    size = next(size for size in (1, 2, 4, 8) if number < 1 << (8 * size))
    return bytes([major << 5 | (23 + size.bit_length())]) + be(number, size)


def item(value):
    if value is None or isinstance(value, bool):
        return bytes([{False: 0xF4, True: 0xF5, None: 0xF6}[value]])
    if isinstance(value, int):
        return head(0, value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(item, value))
    return head(5, len(value)) + b"".join(item(key) + item(entry) for key, entry in value.items())


def encode(value):
    return b"\x01" + item(value)


def shown(value):
    """As the file shows values: bytes are h'...'."""
    if isinstance(value, bytes):
        return f"h'{value.hex()}'"
    if isinstance(value, list):
        return [shown(entry) for entry in value]
    if isinstance(value, dict):
        return {key: shown(entry) for key, entry in value.items()}
    return value


def message(what, vector):
    """Reads a vector's bytes, compares them with its value, and writes them again."""
    data = unhex(vector["bytes"])
    value = decode(data)
    equal(what, shown(value), vector["value"])
    equal(f"{what}, written again", encode(value), data)
    return value


# 2. Names.


def onion(key):
    checksum = sha3(b".onion checksum", key, b"\x03")[:2]
    return base64.b32encode(key + checksum + b"\x03").decode().lower() + ".onion"


def mesh_address(key):
    return b"\xfd" + sha3(b"rustbalance mesh address v1\0", key)[:15]


def public_of(seed):
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def x25519_public(secret):
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def check_names(vectors):
    for name in vectors["names"]:
        key = unhex(name["public"])
        equal("onion address", onion(key), name["address"])
        equal("mesh address", str(ipaddress.IPv6Address(mesh_address(key))), name["mesh"])
    keys = vectors["keys"]
    equal("master address", onion(unhex(keys["master"]["public"])), keys["master"]["address"])
    for name, key in keys.items():
        if "seed" in key:
            equal(f"public half of {name}", public_of(unhex(key["seed"])).hex(), key["public"])
        if "secret" in key:
            equal(f"public half of {name}", x25519_public(unhex(key["secret"])).hex(), key["public"])


# 3. Signatures.


def verify(key, context, signed, signature):
    Ed25519PublicKey.from_public_bytes(key).verify(signature, context.encode() + b"\0" + signed)


def opened(what, envelope, context, signer):
    """The statement in an envelope, once its signature by `signer` has been checked."""
    equal(f"fields of the envelope of {what}", list(envelope), ["signer", "statement", "signature"])
    equal(f"signer of {what}", envelope["signer"], signer)
    verify(signer, context, envelope["statement"], envelope["signature"])
    return decode(envelope["statement"])


# 4. Statements: their contexts, whose key signs them, the bound on the envelope.
STATEMENTS = {
    "authority_certificate": ("rustbalance authority certificate v1", "master", 512),
    "founder_certificate": ("rustbalance member certificate v1", "authority", 768),
    "member_certificate": ("rustbalance member certificate v1", "authority", 768),
    "invitation": ("rustbalance invitation v1", "authority", 16384),
    "invitation_redeemed": ("rustbalance invitation v1", "authority", 16384),
    "revocation": ("rustbalance revocation v1", "authority", 512),
    "service": ("rustbalance record svc", "authority", 4096),
    "renewal": ("rustbalance record renewal", "authority", 1024),
    "discovery_key": ("rustbalance discovery key v1", "authority", 512),
    "node_card": ("rustbalance node card v1", "alpha", 4096),
    "heartbeat": ("rustbalance heartbeat v2", "alpha", 512),
    "intro_points": ("rustbalance intro points v2", "alpha", 12288),
    "endpoint": ("rustbalance record endpoint", "alpha", 1024),
    "report": ("rustbalance record report", "alpha", 1024),
    "lease": ("rustbalance lease v1", "alpha", 512),
    "publication": ("rustbalance publication v2", "alpha", 2048),
}


def check_chain(chain, cluster):
    """Both certificates of a member; gives what the second one says."""
    authority = opened("authority certificate", chain["authority"], STATEMENTS["authority_certificate"][0], cluster)
    equal("cluster of the authority", authority["cluster"], cluster)
    context = STATEMENTS["member_certificate"][0]
    member = opened("member certificate", chain["member"], context, authority["authority"])
    equal("cluster of the member", member["cluster"], cluster)
    return member


def check_statements(vectors):
    keys, cluster = vectors["keys"], unhex(vectors["keys"]["master"]["public"])
    equal("statements", sorted(vectors["statements"]), sorted(STATEMENTS))
    for name, (context, signer, bound) in STATEMENTS.items():
        vector = vectors["statements"][name]
        key = keys[signer]
        envelope = unhex(vector["envelope"])
        said = [vector[field] for field in ("context", "signer", "max")]
        equal(f"context, signer and bound of {name}", [context, key["public"], bound], said)
        equal(f"{name} within its bound", len(envelope) <= bound, True)
        statement = opened(name, decode(envelope), context, unhex(key["public"]))
        equal(name, shown(statement), vector["value"])
        equal(f"cluster of {name}", statement["cluster"], cluster)
        equal(f"{name}, written again", encode(statement).hex(), vector["statement"])
        if "seed" in key:
            signed = context.encode() + b"\0" + encode(statement)
            signature = Ed25519PrivateKey.from_private_bytes(unhex(key["seed"])).sign(signed)
            again = {"signer": unhex(key["public"]), "statement": encode(statement), "signature": signature}
            equal(f"{name}, signed again", encode(again), envelope)
    card = decode(unhex(vectors["statements"]["node_card"]["statement"]))
    equal("member of the card", check_chain(card["chain"], cluster)["node"], card["node"])
    equal("address of the card", bytes(card["address"]), mesh_address(card["node"]))


# 5. Links.


def check_links(vectors):
    cluster = unhex(vectors["keys"]["master"]["public"])
    shake = vectors["handshake"]
    challenge = message("challenge", shake["challenge"])
    for name, purpose in (("mesh", "Mesh"), ("carry_join", "CarryJoin")):
        proof = message(name, shake[f"proof_{name}"])
        dialler = check_chain(proof["chain"], cluster)
        stated = opened(name, proof["proof"], "rustbalance link dialler v1", dialler["node"])
        expected = {
            "cluster": cluster,
            "versions": challenge["versions"],
            "version": min(challenge["versions"][1], 3),
            "route": 0,
            "channel": bytes(32),
            "dialler": dialler["node"],
            "listener": unhex(shake["dialled"]),
            "dialler_nonce": stated["dialler_nonce"],
            "listener_nonce": challenge["nonce"],
            "purpose": purpose,
        }
        equal(name, list(stated.items()), list(expected.items()))
        accepted = message(name, shake[f"accepted_{name}"])["Accepted"]
        listener = check_chain(accepted["chain"], cluster)
        equal(f"listener of {name}", listener["node"], expected["listener"])
        answered = opened(name, accepted["proof"], "rustbalance link listener v1", listener["node"])
        equal(f"answer of {name}", list(answered.items()), list(expected.items()))
    reasons = [message("refusal", refused)["Refused"]["why"] for refused in shake["refused"]]
    known = ["NotMember", "Revoked", "WrongNode", "Expired", "Busy", "Duplicate", "Version", "Malformed"]
    equal("refusals", reasons, known)
    refused = message("refusal", shake["refused_with_revocation"])["Refused"]
    authority = unhex(vectors["keys"]["authority"]["public"])
    word = opened("revocation", refused["revocation"], "rustbalance revocation v1", authority)
    equal("the revoked", word["node"], unhex(vectors["keys"]["beta"]["public"]))
    for name, vector in vectors["links"].items():
        value, payload = message(name, vector), unhex(vector["bytes"])
        equal(f"frame of {name}", unhex(vector["frame"]), be(len(payload), 4) + payload)
        equal(f"variant of {name}", [part.lower() for part in value], [name])
    offer = message("discovery", vectors["links"]["discovery"])["Discovery"]
    word = opened("offer", offer["key"], "rustbalance discovery key v1", authority)
    equal("public half of the offer", x25519_public(offer["secret"]), word["public"])
    digest = hashlib.sha3_256(b"rustbalance facts v2\0")
    for fact in message("facts", vectors["links"]["facts"])["Facts"]:
        name = {"rev": "revocation", "inv": "invitation"}[fact["kind"][:3]]
        statement = opened(fact["kind"], decode(fact["record"]), STATEMENTS[name][0], authority)
        content = encode(statement) if name == "invitation" else b""
        digest.update(fact["kind"].encode() + b"\0" + sha3(content))
    equal("digest of the facts", message("digest", vectors["links"]["factsdigest"])["FactsDigest"], digest.digest())


# 6. Gossip.


class Gossip:
    """chitchat's own encoding: little-endian, texts after two bytes of length."""

    def __init__(self, data):
        self.cbor = Cbor(data)

    def number(self, size):
        return int.from_bytes(self.cbor.take(size), "little")

    def text(self):
        return self.cbor.take(self.number(2)).decode()

    def life(self):
        name, generation = self.text(), self.number(8)
        key = base64.b32decode(name.removesuffix(".onion").upper())[:32]
        equal("name of a life", onion(key), name)
        equal("address of a life", self.cbor.take(19), b"\x06" + mesh_address(key) + (7440).to_bytes(2, "little"))
        return name, generation

    def digest(self):
        return {self.life(): [self.number(8) for _ in range(3)] for _ in range(self.number(2))}

    def blocks(self):
        """The operations; None if any block is packed, which this script cannot undo."""
        body = b""
        while kind := self.number(1):
            block = self.cbor.take(self.number(2))
            body = None if kind == 1 or body is None else body + block
        return body

    def end(self):
        equal("bytes after the message", self.cbor.at, len(self.cbor.data))


def gossip(data, kind):
    reader = Gossip(data)
    equal("head of a message", reader.cbor.take(4), b"\x53\xb0\x00" + bytes([kind]))
    return reader


def check_mesh(vectors):
    mesh = vectors["mesh"]
    asks, answers = ((mesh[who], mesh["generation"]) for who in ("asks", "answers"))
    syn = gossip(unhex(mesh["syn"]), 0)
    equal("lives in SYN", list(syn.digest()), [asks])
    equal("cluster in SYN", syn.text(), vectors["keys"]["master"]["address"])
    syn.end()
    answer = gossip(unhex(mesh["syn_ack"]), 1)
    equal("lives in SYN-ACK", sorted(answer.digest()), sorted([asks, answers]))
    equal("SYN-ACK of one who has nothing to tell", answer.blocks(), b"")
    answer.end()
    packed = gossip(unhex(mesh["ack"]), 2)
    packed.blocks()
    packed.end()
    plain = gossip(unhex(mesh["ack_plain"]), 2)
    body = Gossip(plain.blocks())
    plain.end()
    equal("first operation", body.number(1), 0)
    equal("life told of", body.life(), asks)
    equal("what was forgotten, from where", (body.number(8), body.number(8)), (0, 0))
    equal("second operation", (body.number(1), body.text()), (1, "beat"))
    equal("value", base64.b64decode(body.text(), validate=True).hex(), vectors["statements"]["heartbeat"]["envelope"])
    equal("version, status", (body.number(8), body.number(1)), (1, 0))
    body.end()


# 7. Joins.


def token_text(seed, cluster):
    tag = sha3(b"rustbalance token cluster v1\0", cluster)[:2]
    checksum = sha3(b"rustbalance token v1\0", seed, tag)[:2]
    return "rb1-" + base64.b32encode(seed + tag + checksum).decode().rstrip("=").lower()


def check_join(vectors, role, size):
    keys, join = vectors["keys"], vectors["joins"][role]
    cluster, authority = unhex(keys["master"]["public"]), unhex(keys["authority"]["public"])
    token, node = keys[f"{role}_token"], {"worker": "beta", "publisher": "gamma"}[role]
    text = token_text(unhex(token["seed"]), cluster)
    equal("token", [text, text], [join["token"], token["text"]])
    hello, challenge = (message(name, join[name]) for name in ("hello", "challenge"))
    hello, challenge = hello["Hello"], challenge["Challenge"]
    equal("cluster of Hello", hello["cluster"], cluster)
    for side, said in (("joiner", hello), ("publisher", challenge)):
        equal(f"ephemeral key of the {side}", x25519_public(unhex(join[f"{side}_ephemeral"])), said["ephemeral"])

    redeem = message("redeem", join["redeem"])["Redeem"]
    equal("joiner", redeem["node"].hex(), keys[node]["public"])
    equal("invitation", redeem["invitation"].hex(), token["public"])
    heard = [unhex(join[name]["bytes"]) for name in ("hello", "challenge")]
    lengths = [be(len(part)) for part in heard]
    request = sha3(
        b"rustbalance join request v1\0", lengths[0], heard[0], lengths[1], heard[1],
        redeem["node"], redeem["invitation"], be(redeem["unix"]),
    )  # fmt: skip
    equal("request hash", request.hex(), join["request_hash"])
    verify(redeem["invitation"], "rustbalance join by token v1", request, redeem["token_signature"])
    verify(redeem["node"], "rustbalance join by node v1", request, redeem["node_signature"])

    answer = message("answer", join["answer"])["Answer"]
    equal("role", answer["role"], role)
    said = sha3(
        b"rustbalance join answer v1\0", request, {"publisher": b"\x01", "worker": b"\x02"}[role], answer["publisher"]
    )
    equal("answer hash", said.hex(), join["answer_hash"])
    ours = X25519PrivateKey.from_private_bytes(unhex(join["joiner_ephemeral"]))
    shared = ours.exchange(X25519PublicKey.from_public_bytes(challenge["ephemeral"]))
    equal("agreed secret", shared.hex(), join["shared"])
    derived = HKDF(hashes.SHA256(), 44, salt=said, info=b"rustbalance join answer key v1").derive(shared)
    equal("key and nonce", (derived[:32].hex(), derived[32:].hex()), (join["key"], join["nonce"]))
    plain = AESGCM(derived[:32]).decrypt(derived[32:], answer["sealed"], said)
    equal("secrets of the parcel", plain[:size].hex(), join["plain"]["secrets"])
    equal("facts of the parcel", plain[size:].hex(), join["plain"]["facts"]["bytes"])
    points = sha3(b"rustbalance point seed v1\0", unhex(keys["authority"]["seed"]), redeem["node"])
    none = bytes(32)
    secrets = [(1, none, unhex(keys["discovery_0"]["secret"])), (2, none, points)]
    if role == "publisher":
        secrets += [(3, none, unhex(keys["authority"]["seed"])), (4, cluster, unhex(keys["master"]["expanded"]))]
    parcel = b"\x01" + len(secrets).to_bytes(2, "big")
    for purpose, service, secret in secrets:
        parcel += purpose.to_bytes(2, "big") + service + bytes(4) + len(secret).to_bytes(2, "big") + secret
    equal("the secrets", plain[:size], parcel)

    facts = message("facts", join["plain"]["facts"])
    publisher = check_chain(facts["publisher"], cluster)
    equal("who admits", (publisher["node"], publisher["role"]), (answer["publisher"], "publisher"))
    verify(answer["publisher"], "rustbalance join by publisher v1", said, facts["signature"])
    member = check_chain(facts["member"], cluster)
    equal("who is admitted", (member["node"], member["role"]), (redeem["node"], role))
    equal("with what", member["invitation"], redeem["invitation"])
    key = opened("discovery key", facts["discovery"], "rustbalance discovery key v1", authority)
    equal("discovery key", key["public"], x25519_public(plain[43:75]))
    recorded = opened("invitation", decode(unhex(join["recorded"])), "rustbalance invitation v1", authority)
    equal("who has redeemed", recorded["redeemed"], [redeem["node"]])


def check_joins(vectors):
    check_join(vectors, "worker", 147)
    check_join(vectors, "publisher", 323)
    for refused in vectors["joins"]["refused"]:
        equal("variant of a refusal", list(message("refusal", refused)), ["Refused"])


# 8. The election; 9. liveness; 10. invitations; 11. discovery keys; 12. neighbours.


def rank(priority, term, node):
    return priority, sha3(b"rustbalance rank v1\0", be(term), node)[:8], node


def dead_at(nodes, beats):
    """Milliseconds; None while the node is not alive."""
    interval, least, most = 2000, 10_000, 40_000
    interval = max(interval, 40 * (nodes - 16))
    least = max(least, 3 * interval)
    most = max(most, least)
    intervals = 3 if 4 * interval > least else 4
    mean, alive = interval, False
    allowed = lambda: min(max(intervals * mean, least), most)
    for before, at in zip(beats, beats[1:]):
        elapsed = at - before
        if elapsed <= most:
            mean = (4 * mean + elapsed) / 5
        alive = elapsed <= allowed()
    return int(beats[-1] + allowed() + 1) if alive else None


def merged(versions):
    strictest = {"uses": min, "expires": min, "issued": min, "revoked": max, "role": max}
    result = dict(versions[0])
    for field, pick in strictest.items():
        result[field] = pick(version[field] for version in versions)
    result["redeemed"] = sorted({node for version in versions for node in version["redeemed"]})
    return result


def neighbours(me, members, links):
    ring = [node for node in members if node > me] + [node for node in members if node < me]
    if len(ring) <= links:
        return sorted(ring)
    liking = lambda other: sha3(b"rustbalance neighbours v1\0", *sorted([me, other]))
    return sorted(ring[:2] + sorted(ring[2:], key=liking)[: links - 2])


def check_rules(vectors):
    rules = vectors["rules"]
    nodes = {unhex(node["node"]): node["priority"] for node in rules["ranks"]["nodes"]}
    for queue in rules["ranks"]["queues"]:
        order = sorted(nodes, key=lambda node: rank(nodes[node], queue["term"], node))
        equal(f"queue for term {queue['term']}", [node.hex() for node in order], queue["order"])
    claims = [(claim["term"], claim["priority"], unhex(claim["holder"])) for claim in rules["claims"]]
    best_last = sorted(claims, key=lambda claim: rank(claim[1], claim[0], claim[2]), reverse=True)
    equal("claims", sorted(best_last, key=lambda claim: claim[0]), claims)
    for case in rules["liveness"]:
        equal(f"death after {case['beats']}", dead_at(case["nodes"], case["beats"]), case["dead_at"])
    equal("merger", merged(rules["invitations"]["versions"]), rules["invitations"]["merged"])
    case = rules["overdrawn"]
    order = sorted((joined["issued"], joined["node"]) for joined in case["joined"])
    equal("overdrawn", sorted(node for _, node in order[case["uses"] :]), case["overdrawn"])
    keys = [(key["generation"], key["public"]) for key in rules["discovery"]]
    equal("discovery keys", sorted(keys), keys)
    case = rules["neighbours"]
    chosen = neighbours(unhex(case["me"]), sorted(map(unhex, case["members"])), case["links"])
    equal("neighbours", [node.hex() for node in chosen], case["chosen"])
    for case in rules["choices"]:
        equal("choice", choose(case), case["chosen"])
        equal("offered subprotocols", offered(case), case["offered"])
    check_announcement(vectors)
    check_points(vectors)
    check_publishing(vectors)


# 15. WireGuard.


def check_announcement(vectors):
    case, keys = vectors["rules"]["announcement"], vectors["keys"]
    record = decode(unhex(vectors["statements"]["endpoint"]["statement"]))
    secret = unhex(keys["discovery_1"]["secret"])
    key = sha3(b"rustbalance endpoint seal v1\0", secret, record["cluster"], record["node"])
    nonce, text = record["sealed"][:12], record["sealed"][12:]
    equal("nonce of the seal", nonce.hex(), case["nonce"])
    content = AESGCM(key).decrypt(nonce, text, b"")
    equal("sealed content", content.hex(), case["content"])
    value = decode(content)
    equal("announcement", shown(value), case["value"])
    equal("announcement, written again", encode(value), content)
    starts = [entry["from"] for entry in value["keys"]]
    equal("order of the keys", starts, sorted(set(starts)))
    read = lambda packed: (str(ipaddress.ip_address(packed[:-2])), int.from_bytes(packed[-2:], "big"))
    equal("addresses", list(map(read, value["endpoints"])), [("203.0.113.7", 7440), ("2001:db8::7", 7440)])


def check_points(vectors):
    keys, case = vectors["keys"], vectors["rules"]["point_keys"]
    seed = sha3(b"rustbalance point seed v1\0", unhex(keys["authority"]["seed"]), unhex(keys["beta"]["public"]))
    equal("seed of points", seed.hex(), case["seed"])
    session = sha3(b"rustbalance point session v1\0", seed, unhex(case["nonce"]))
    encryption = sha3(b"rustbalance point encryption v1\0", seed, unhex(case["nonce"]))
    equal("session key", (session.hex(), public_of(session).hex()), (case["session_seed"], case["session_key"]))
    equal(
        "encryption key",
        (encryption.hex(), x25519_public(encryption).hex()),
        (case["encryption_secret"], case["encryption_key"]),
    )
    case = vectors["rules"]["stand_ins"]
    for point in case["points"]:
        lot = lambda node: sha3(b"rustbalance stand-in v1\0", unhex(point["session_key"]), unhex(node))
        equal("who stands in", min(case["publishers"], key=lot), point["stands_in"])


# 13. What is published.


def choose(case):
    offering = [server for server in case["servers"] if server["points"]]
    of = lambda *fitness: [server for server in offering if server["fitness"] in fitness]
    unfit = of("degraded", "down")
    once_healthy = [server for server in unfit if server["node"] in case["last_healthy"]]
    tier = of("healthy") or once_healthy or unfit or of("draining")

    identities = lambda point: (point["rsa"], point["ed25519"])

    def relay_lot(point, node):
        return max(sha3(b"rustbalance relay v1\0", unhex(identity), unhex(node)) for identity in identities(point))

    def one_per_relay(servers):
        new = lambda point: point["session_key"] not in case["published"]
        claims = [(server["node"], point) for server in servers for point in server["points"]]
        claims.sort(key=lambda claim: (new(claim[1]), relay_lot(claim[1], claim[0]), claim[0], claim[1]["session_key"]))
        taken, held, offers = set(), set(), {}
        for _, point in claims:
            if taken.isdisjoint(identities(point)):
                taken.update(identities(point))
                held.add(point["session_key"])
        for server in servers:
            points = [point for point in sorted(server["points"], key=new) if point["session_key"] in held]
            if points:
                offers[server["node"]] = (server["weight"], [point["session_key"] for point in points])
        return offers

    def lot(server):
        digest = sha3(b"rustbalance lot v1\0", be(case["count"]), unhex(server["node"]))
        uniform = (int.from_bytes(digest[:6], "big") + 1) / 2**48
        return abs(math.log(uniform)) / server["weight"], server["node"]

    limit, drawn = case["limit"], len(tier)
    if len(tier) > limit:
        tier, drawn = sorted(tier, key=lot), limit
    while True:
        offers = one_per_relay(tier[:drawn])
        room = min(limit - len(offers), len(tier) - drawn)
        if room <= 0:
            break
        drawn += room
    seats = {node: 1 for node in offers}
    while sum(seats.values()) < limit:
        due = [node for node, (_, points) in offers.items() if seats[node] < len(points)]
        if not due:
            break
        # Python compares the fractions exactly enough: both sides are small.
        best = min(due, key=lambda node: (-offers[node][0] / (2 * seats[node] + 1), node))
        seats[best] += 1
    return sorted(key for node, (_, points) in offers.items() for key in points[: seats[node]])


def offered(case):
    """The subprotocols that every server with points grants."""
    granted = [set(map(tuple, server["subprotocols"])) for server in case["servers"] if server["points"]]
    return [list(subprotocol) for subprotocol in sorted(set.intersection(*granted))] if granted else []


ORDER = 2**252 + 27742317777372353535851937790883648493
BASE = (
    b"(15112221349535400772501151409588531511454012693041857206046113283949847762202, "
    b"46316835694926478169428394003475163141307993866256225615783033603165251855960)"
)


def blinded_scalar(master, public, period):
    """rend-spec-v3, appendix A.2."""
    nonce = b"key-blind" + be(period["number"]) + be(period["length_minutes"])
    factor = bytearray(sha3(b"Derive temporary signing key\0", public, BASE, nonce))
    factor[0] &= 248
    factor[31] = factor[31] & 63 | 64
    product = int.from_bytes(factor, "little") * int.from_bytes(master[:32], "little") % ORDER
    return product.to_bytes(32, "little")


def check_publishing(vectors):
    master, case = vectors["keys"]["master"], vectors["rules"]["revisions"]
    scalar = blinded_scalar(unhex(master["expanded"]), unhex(master["public"]), case["period"])
    for revision in case["revisions"]:
        stream = Cipher(algorithms.AES(sha3(b"rev-counter-generation", scalar)), modes.CTR(bytes(16))).encryptor()
        words = revision["clock"] + 1
        noise = stream.update(bytes(2 * words))
        total = sum(noise[0::2]) + 256 * sum(noise[1::2])
        equal(f"revision of second {revision['clock']}", words + total, revision["revision"])

    case = vectors["rules"]["ring"]
    number, length = be(case["period"]["number"]), be(case["period"]["length_minutes"])
    value = sha3(b"shared-random-disaster", length, number)
    ring = sorted((sha3(b"node-idx", unhex(relay), value, number, length), relay) for relay in case["relays"])
    chosen = []
    for replica in range(1, case["replicas"] + 1):
        start = sha3(b"store-at-idx", unhex(case["blinded"]), be(replica), length, number)
        turned = [relay for at, relay in ring if at >= start] + [relay for at, relay in ring if at < start]
        chosen += [relay for relay in turned if relay not in chosen][: case["spread"]]
    equal("directories", chosen, case["directories"])


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).with_name("protocol.json")
    with open(path) as file:
        vectors = json.load(file)
    checks = (check_codec, check_names, check_statements, check_links, check_mesh, check_joins, check_rules)
    for check in checks:
        check(vectors)
    print(f"all is as the document says: {len(vectors['statements'])} statements, {len(checks)} parts")


main()
