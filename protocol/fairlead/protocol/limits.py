"""Every number that crosses the wire, and the relations between them.

A limit that stands alone is a trap: an ancestor remembered nonces for ten seconds and accepted messages for
two hundred and fifty. The relations are asserted here at import, and again for configured values when a
configuration is loaded.
"""

from __future__ import annotations

from typing import Final

WIRE_VERSION_MIN: Final = 1
WIRE_VERSION_MAX: Final = 1

NOISE_MESSAGE_BYTES_MAX: Final = 65_535  # Noise specification, revision 34, section 3
AEAD_TAG_BYTES: Final = 16
FRAME_PLAINTEXT_BYTES_MAX: Final = NOISE_MESSAGE_BYTES_MAX - AEAD_TAG_BYTES
FRAME_PAYLOAD_BYTES_MAX: Final = FRAME_PLAINTEXT_BYTES_MAX - 1  # one byte says what the frame is

REKEY_FRAMES: Final = 4_096
REKEY_INTERVAL_MS: Final = 600_000

IDENTITY_BYTES_MAX: Final = 64
CORRELATION_ID_CHARS_MAX: Final = 64
ENVELOPE_HEADER_BYTES_MAX: Final = 512
PAYLOAD_BYTES_MAX_DEFAULT: Final = 65_536
TTL_MS_MAX_DEFAULT: Final = 10_000
SKEW_MS_MAX_DEFAULT: Final = 120_000
INFLIGHT_MAX_DEFAULT: Final = 256

REGISTRY_COMMANDS_MAX: Final = 10_000
REGISTRY_BYTES_MAX: Final = 16 * 1024 * 1024
DESCRIPTOR_BYTES_MAX: Final = 16_384
PARAMETERS_MAX: Final = 64
ALIASES_MAX: Final = 64
NAME_CHARS_MAX: Final = 128
TEXT_CHARS_MAX: Final = 1_024
CHUNK_BYTES_MAX: Final = 32_768
ARGUMENT_DEPTH_MAX: Final = 16
DETAIL_CHARS_MAX: Final = 2_000

HEARTBEAT_RUNS_MAX: Final = 1_024

assert FRAME_PAYLOAD_BYTES_MAX < NOISE_MESSAGE_BYTES_MAX
assert REKEY_FRAMES < 2**32, "a key is changed long before its nonces run out"
assert DESCRIPTOR_BYTES_MAX <= CHUNK_BYTES_MAX <= PAYLOAD_BYTES_MAX_DEFAULT - 1_024, "a chunk fits a payload"
assert TTL_MS_MAX_DEFAULT + 2 * SKEW_MS_MAX_DEFAULT <= 300_000, "the default replay window covers validity"
