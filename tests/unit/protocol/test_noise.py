"""The handshake is Noise: public vectors, and an independent implementation in both roles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from noise.connection import NoiseConnection

from fairlead.protocol.noise import CipherState, Handshake, NoiseError

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "noise_nnpsk0.json").read_text())["vectors"]
PSK = bytes(range(32))


@pytest.mark.parametrize("vector", VECTORS)
def test_public_vector(vector: dict) -> None:
    unhex = bytes.fromhex
    alice = Handshake(
        initiator=True,
        prologue=unhex(vector["init_prologue"]),
        psk=unhex(vector["init_psks"][0]),
        ephemeral_private=unhex(vector["init_ephemeral"]),
    )
    bob = Handshake(
        initiator=False,
        prologue=unhex(vector["resp_prologue"]),
        psk=unhex(vector["resp_psks"][0]),
        ephemeral_private=unhex(vector["resp_ephemeral"]),
    )
    first, second, *rest = vector["messages"]
    wire = alice.write_first(unhex(first["payload"]))
    assert wire.hex() == first["ciphertext"]
    assert bob.read_first(wire).hex() == first["payload"]
    wire = bob.write_second(unhex(second["payload"]))
    assert wire.hex() == second["ciphertext"]
    assert alice.read_second(wire).hex() == second["payload"]
    assert alice.handshake_hash == bob.handshake_hash == unhex(vector["handshake_hash"])
    alice_send, alice_receive = alice.split()
    bob_send, bob_receive = bob.split()
    for number, message in enumerate(rest):
        sender, receiver = (alice_send, bob_receive) if number % 2 == 0 else (bob_send, alice_receive)
        wire = sender.encrypt(unhex(message["payload"]))
        assert wire.hex() == message["ciphertext"]
        assert receiver.decrypt(wire).hex() == message["payload"]


def independent(initiator: bool, prologue: bytes) -> NoiseConnection:
    other = NoiseConnection.from_name(b"Noise_NNpsk0_25519_ChaChaPoly_BLAKE2b")
    other.set_psks(psk=PSK)
    other.set_prologue(prologue)
    if initiator:
        other.set_as_initiator()
    else:
        other.set_as_responder()
    other.start_handshake()
    return other


@pytest.mark.parametrize("we_dial", [True, False])
def test_interoperates_with_the_independent_noiseprotocol_package(we_dial: bool) -> None:
    ours = Handshake(initiator=we_dial, prologue=b"hello", psk=PSK, ephemeral_private=b"\x42" * 32)
    other = independent(not we_dial, b"hello")
    if we_dial:
        assert bytes(other.read_message(ours.write_first(b"one"))) == b"one"
        assert ours.read_second(bytes(other.write_message(b"two"))) == b"two"
    else:
        assert ours.read_first(bytes(other.write_message(b"one"))) == b"one"
        assert bytes(other.read_message(ours.write_second(b"two"))) == b"two"
    assert other.handshake_finished
    send, receive = ours.split()
    for round_number in range(20):
        text = b"message %d" % round_number
        assert bytes(other.decrypt(send.encrypt(text))) == text
        assert receive.decrypt(bytes(other.encrypt(text))) == text
        if round_number == 10:
            send.rekey()
            receive.rekey()
            other.rekey_inbound_cipher()
            other.rekey_outbound_cipher()


def test_wrong_psk_prologue_or_bit_fails_before_any_agreement() -> None:
    def first(psk: bytes = PSK, prologue: bytes = b"p") -> bytes:
        alice = Handshake(initiator=True, prologue=prologue, psk=psk, ephemeral_private=b"\x01" * 32)
        return alice.write_first(b"")

    def bob() -> Handshake:
        return Handshake(initiator=False, prologue=b"p", psk=PSK, ephemeral_private=b"\x02" * 32)

    bob().read_first(first())
    flipped = bytearray(first())
    flipped[-1] ^= 1
    for bad in (first(psk=bytes(32)), first(prologue=b"q"), bytes(flipped), b"", first()[:40]):
        with pytest.raises(NoiseError):
            bob().read_first(bad)


def test_low_order_ephemeral_is_refused() -> None:
    from fairlead.protocol.noise import crypto_scalarmult_base

    assert crypto_scalarmult_base(b"\x03" * 32)
    alice = Handshake(initiator=True, prologue=b"", psk=PSK, ephemeral_private=b"\x01" * 32)
    alice._public = bytes(32)  # a dialler that knows the psk and offers the all-zero point
    message = alice.write_first(b"")
    bob = Handshake(initiator=False, prologue=b"", psk=PSK, ephemeral_private=b"\x02" * 32)
    bob.read_first(message)
    with pytest.raises(NoiseError):
        bob.write_second(b"")


def test_a_forged_frame_does_not_move_the_counter() -> None:
    send, receive = CipherState(PSK), CipherState(PSK)
    sealed = send.encrypt(b"real")
    with pytest.raises(NoiseError):
        receive.decrypt(b"\x00" * len(sealed))
    assert receive.decrypt(sealed) == b"real"
    with pytest.raises(NoiseError):
        receive.decrypt(sealed)  # replayed
