"""The most probable cause of a failure to reach the broker, derived from the log of the Kafka client.

The client's error is "Unable to bootstrap" whatever the cause. The tables are ordered: the first entry whose pattern
occurs anywhere in the log is the cause, so certain causes precede those that may only be a consequence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple


class Attempt(NamedTuple):
    """The servers and the way of connecting that were tried. Contains no secrets."""

    servers: tuple[str, ...]
    protocol: str
    mechanism: str | None
    username: str | None
    ca_file: str | None
    seconds: float

    @property
    def tls(self) -> bool:
        return self.protocol in ("SSL", "SASL_SSL")

    @property
    def sasl(self) -> bool:
        return self.protocol.startswith("SASL_")

    def __str__(self) -> str:
        how = [self.protocol]
        if self.sasl:
            how.append(f"{self.mechanism} as user {self.username!r}")
        return f"{', '.join(self.servers)} ({', '.join(how)}, tried for {self.seconds:g} s)"


class Cause(NamedTuple):
    """A pattern in the client's log, and the message to the operator with place holders that `_filled` replaces."""

    pattern: str
    text: str


_CERTAIN = (
    Cause(
        r"certificate has expired",
        "The broker's certificate has expired. Renew it on the broker, or correct the clock of this machine if that "
        "is wrong.",
    ),
    Cause(
        r"certificate is not yet valid",
        "The broker's certificate is not valid yet. Check the clock of this machine.",
    ),
    Cause(
        r"[Hh]ostname mismatch|IP address mismatch|certificate is not valid for",
        "The broker's certificate is for another host name than {servers}. Use a name from the certificate "
        "in kafka.bootstrap_servers (and in the broker's advertised.listeners), or issue a certificate for "
        "this name.",
    ),
    Cause(
        r"CERTIFICATE_VERIFY_FAILED",
        "The broker's certificate is not signed by an authority in {ca}. Set kafka.ca_file to the "
        "certificate of the authority that signed the broker's.",
    ),
    Cause(
        r"SaslAuthenticationFailed",
        "The broker rejected the user name or password. Check kafka.username, kafka.password (or "
        "kafka.password_file) and kafka.sasl_mechanism, and that the broker has this user for this "
        "mechanism.",
    ),
    Cause(
        r"IllegalSaslState",
        "The listener at this port does not use SASL login. Set kafka.security_protocol to {bare}, or "
        "use the port of a SASL listener.",
    ),
    Cause(
        r"UnsupportedSaslMechanism|SaslHandshake failed|does not support \S+ sasl mechanism",
        "The broker does not offer this mechanism. Set kafka.sasl_mechanism to one of the broker's "
        "sasl.enabled.mechanisms.",
    ),
    Cause(
        r"(?i)alert bad certificate|certificate required|alert handshake failure|alert unknown ca",
        "The broker rejected the client certificate, or requires one and got none. Set kafka.cert_file and "
        "kafka.key_file to a certificate that the broker's truststore accepts.",
    ),
    Cause(
        r"does not support the 'MetadataRequest'|kafka controller",
        "The port belongs to a controller, not to a broker. Use the port of a broker's listener.",
    ),
)
_UNENCRYPTED = Cause(
    r"WRONG_VERSION_NUMBER|wrong version number|UNEXPECTED_EOF|EOF occurred in violation|RECORD_LAYER",
    "The port does not speak TLS. Set kafka.security_protocol to {untls}, or use the port of a TLS listener.",
)
_ENCRYPTED = Cause(
    # A TLS alert (bytes 21, 3, x) interpreted as the length of a Kafka message.
    r"Invalid frame length: 352[0-9]{6}\b",
    "The port speaks TLS. Set kafka.security_protocol to {tls}, or use the port of a plaintext listener.",
)
_PROBABLE = (
    Cause(r"DNS", "The host name cannot be resolved. Check kafka.bootstrap_servers and DNS on this machine."),
    Cause(
        r"ECONNREFUSED|refused",
        "Nothing listens at that address. Check that the broker runs, and host and port in kafka.bootstrap_servers.",
    ),
    Cause(r"ENETUNREACH|EHOSTUNREACH|unreachable", "There is no route to the host. Check the network."),
)
_NO_ANSWER = "There was no answer. Check host, port and firewalls."


def most_probable_cause(attempt: Attempt, log_lines: Sequence[str], connected: bool = False) -> str:
    """One or two sentences: the most probable cause, and what to do about it.

    `connected`: the broker has answered before, so another broker of the cluster fails.
    """
    log = "\n".join(log_lines)
    if connected:
        return _after_bootstrap(log)
    for cause in (*_CERTAIN, _UNENCRYPTED if attempt.tls else _ENCRYPTED):
        if re.search(cause.pattern, log):
            return _filled(cause.text, attempt)
    disconnected = "socket disconnected" in log
    if disconnected or "timed out" in log:
        guess = _cause_of_disconnect(attempt, "Broker version identified" in log, disconnected)
        if guess is not None:
            return _filled(guess, attempt)
    return next(
        (_filled(cause.text, attempt) for cause in _PROBABLE if re.search(cause.pattern, log)), _NO_ANSWER
    )


def _cause_of_disconnect(attempt: Attempt, answered: bool, disconnected: bool) -> str | None:
    """The probable cause of a disconnect without a reason, by the stage that the connection had reached."""
    if answered and attempt.sasl:
        # The client drops an error response that arrives together with the end of the connection.
        return (
            "The broker disconnected during the login: probably the user name or password is wrong, or the "
            "mechanism is not enabled. Check kafka.username, kafka.password and kafka.sasl_mechanism."
        )
    if answered and disconnected:
        return (
            "The broker disconnected after the first response: the listener probably requires a SASL login. Set "
            "kafka.security_protocol to {sasl}, with kafka.sasl_mechanism, kafka.username and kafka.password."
        )
    if disconnected and not attempt.tls:
        return "The broker disconnected at once: the port probably speaks TLS. Set kafka.security_protocol to {tls}."
    return None


def _after_bootstrap(log: str) -> str:
    """The bootstrap address answered, so the addresses in that answer fail."""
    addresses = re.findall(r"Initializing connection for node_id (?!bootstrap)\S+ at (\S+)", log)
    where = f" ({', '.join(sorted(set(addresses)))})" if addresses else ""
    return (
        f"The broker answered, but the brokers it advertises{where} do not. Check that they run, their "
        "advertised.listeners, and that every partition has a leader."
    )


def _filled(text: str, attempt: Attempt) -> str:
    return text.format(
        ca=attempt.ca_file or "the certificate store of this system",
        servers=", ".join(attempt.servers),
        bare="SSL" if attempt.tls else "PLAINTEXT",
        untls="SASL_PLAINTEXT" if attempt.sasl else "PLAINTEXT",
        tls="SASL_SSL" if attempt.sasl else "SSL (or SASL_SSL)",
        sasl="SASL_SSL" if attempt.tls else "SASL_PLAINTEXT",
    )
