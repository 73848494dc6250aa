"""What a broker's reason codes mean for us (MQTT 5.0, tables 3-1, 3-4 and 3-13)."""

from __future__ import annotations

from paho.mqtt.reasoncodes import ReasonCode

from wire.errors import BrokerRefused, BrokerUnreachable, LinkError

__all__ = ["HOPELESS", "TOO_LARGE", "TOPIC_BYTES", "UNSUPPORTED_VERSION", "failure", "too_large"]

TOPIC_BYTES = 256  # room for a topic and headers, where the topic is not known yet

UNSUPPORTED_VERSION, TOO_LARGE = 0x84, 0x95
# What a person has to mend: trying again would not help. All else passes: quota exceeded (0x97), no subscribers (0x10) and their like.
HOPELESS = {
    0x85: "it does not accept our client id",
    0x86: "wrong user name or password; check `username` and `password_file` in [broker]",
    0x87: "not authorized; check `username`, `password_file` and `cert` in [broker], and the broker's access list",
    0x8A: "this client is banned; ask who runs the broker",
    0x8C: "it wants an authentication method that we lack",
    0x8E: "another client with the same name has taken over; run each party only once",
    0x8F: "a topic filter is not allowed; check the broker's access list",
    0x90: "a topic name is not allowed; check the broker's access list",
    TOO_LARGE: "a packet is too large for it; lower `part_bytes` in [broker]",
    0x99: "it inspects payloads and does not like ours; have it pass binary payloads on our topics",
    0x9B: "it does not do QoS 1",
}


def failure(reason: ReasonCode) -> LinkError:
    """Why a connection has ended, or was not made: BrokerRefused where another would end the same way."""
    if reason.value in HOPELESS:
        return BrokerRefused(HOPELESS[reason.value])
    if reason.value == UNSUPPORTED_VERSION:
        return BrokerRefused("it speaks neither MQTT 5 nor 3.1.1")
    return BrokerUnreachable(f"the broker says: {reason.getName().lower()}")


def too_large(longest_bytes: int) -> str:
    """What to do where the broker takes packets of at most ``longest_bytes``."""
    fits = max(0, longest_bytes - TOPIC_BYTES)
    return f"it takes packets of at most {longest_bytes} bytes; set `part_bytes` in [broker] to {fits} or less"
