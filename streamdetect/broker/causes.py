"""What a failure to reach the broker most probably means, judged by what the Kafka client wrote to its log.

The client itself only says "Unable to bootstrap", whatever the cause. The table is in order: the first line
whose pattern is found anywhere in the log is the cause, so what is certain comes before what may be a
consequence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple


class Attempt(NamedTuple):
    """What was tried: where, and how. No secrets."""

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
    """A pattern in the client's log and what to tell the operator; `{ca}` and `{servers}` are filled in."""

    pattern: str
    text: str


_CERTAIN = (
    Cause(
        r"certificate has expired",
        "The broker's certificate has expired. Renew it on the broker; if it has not, check the clock here.",
    ),
    Cause(
        r"certificate is not yet valid", "The broker's certificate is not valid yet. Check the clock here."
    ),
    Cause(
        r"[Hh]ostname mismatch|IP address mismatch|certificate is not valid for",
        "The broker's certificate is for another host name than {servers}. Use a name that is in the "
        "certificate in kafka.bootstrap_servers (and in the broker's advertised.listeners), or have one "
        "issued for this name.",
    ),
    Cause(
        r"CERTIFICATE_VERIFY_FAILED",
        "The broker's certificate is not signed by an authority that {ca} holds. Set kafka.ca_file to the "
        "certificate of the authority that signed the broker's.",
    ),
    Cause(
        r"SaslAuthenticationFailed",
        "The broker refused the user name or password. Check kafka.username, kafka.password (or "
        "kafka.password_file) and kafka.sasl_mechanism, and that the broker has this user for this "
        "mechanism.",
    ),
    Cause(
        r"IllegalSaslState",
        "The listener at this port does not ask for a password. Set kafka.security_protocol to {bare}, or "
        "use the port of a SASL listener.",
    ),
    Cause(
        r"UnsupportedSaslMechanism|SaslHandshake failed|does not support \S+ sasl mechanism",
        "The broker does not offer this mechanism. Set kafka.sasl_mechanism to one that is in the "
        "broker's sasl.enabled.mechanisms.",
    ),
    Cause(
        r"(?i)alert bad certificate|certificate required|alert handshake failure|alert unknown ca",
        "The broker refused our certificate, or wants one and got none. Set kafka.cert_file and "
        "kafka.key_file to a certificate that the broker's truststore accepts.",
    ),
    Cause(
        r"does not support the 'MetadataRequest'|kafka controller",
        "This is the port of a controller, not of a broker. Use the port of a broker's listener.",
    ),
)
_UNENCRYPTED = Cause(
    r"WRONG_VERSION_NUMBER|wrong version number|UNEXPECTED_EOF|EOF occurred in violation|RECORD_LAYER",
    "The port does not speak TLS. Set kafka.security_protocol to {untls}, or use the port of a TLS listener.",
)
_ENCRYPTED = Cause(
    # A TLS alert (bytes 21, 3, x) read as the length of a Kafka message.
    r"Invalid frame length: 352[0-9]{6}\b",
    "The port speaks TLS. Set kafka.security_protocol to {tls}, or use the port of a plaintext listener.",
)
_PROBABLE = (
    Cause(
        r"DNS", "The host name cannot be resolved. Check kafka.bootstrap_servers and the name service here."
    ),
    Cause(
        r"ECONNREFUSED|refused",
        "Nothing listens there. Check that the broker runs, and host and port in kafka.bootstrap_servers.",
    ),
    Cause(r"ENETUNREACH|EHOSTUNREACH|unreachable", "There is no route to the host. Check the network."),
)
_SILENCE = "There was no answer. Check host and port, and firewalls in between."


def most_probable_cause(attempt: Attempt, said: Sequence[str], connected: bool = False) -> str:
    """One or two sentences: what is most probably wrong, and what to do about it.

    `connected`: the broker had answered before, so what fails is the rest of the cluster.
    """
    log = "\n".join(said)
    if connected:
        return _after_bootstrap(log)
    for cause in (*_CERTAIN, _UNENCRYPTED if attempt.tls else _ENCRYPTED):
        if re.search(cause.pattern, log):
            return _filled(cause.text, attempt)
    hung_up = "socket disconnected" in log
    if hung_up or "timed out" in log:
        guess = _cut_off(attempt, "Broker version identified" in log, hung_up)
        if guess is not None:
            return _filled(guess, attempt)
    return next(
        (_filled(cause.text, attempt) for cause in _PROBABLE if re.search(cause.pattern, log)), _SILENCE
    )


def _cut_off(attempt: Attempt, answered: bool, hung_up: bool) -> str | None:
    """The broker hung up without a reason: how far we had come says most about it."""
    if answered and attempt.sasl:
        # The client drops a refusal that arrives together with the end of the connection.
        return (
            "The broker hung up while we logged in: probably the user name or password is wrong, or the "
            "mechanism is not enabled. Check kafka.username, kafka.password and kafka.sasl_mechanism."
        )
    if answered and hung_up:
        return (
            "The broker hung up after the greeting: the listener probably wants a password. Set "
            "kafka.security_protocol to {sasl}, with kafka.sasl_mechanism, kafka.username and kafka.password."
        )
    if hung_up and not attempt.tls:
        return (
            "The broker hung up at once: the port probably speaks TLS. Set kafka.security_protocol to {tls}."
        )
    return None


def _after_bootstrap(log: str) -> str:
    """The first address answered, so what fails is what that answer said."""
    told = re.findall(r"Initializing connection for node_id (?!bootstrap)\S+ at (\S+)", log)
    where = f" ({', '.join(sorted(set(told)))})" if told else ""
    return (
        f"The broker answered before, but the brokers it named{where} do not. Check that they run, their "
        "advertised.listeners, and that every partition has a leader."
    )


def _filled(text: str, attempt: Attempt) -> str:
    return text.format(
        ca=attempt.ca_file or "this system's store",
        servers=", ".join(attempt.servers),
        bare="SSL" if attempt.tls else "PLAINTEXT",
        untls="SASL_PLAINTEXT" if attempt.sasl else "PLAINTEXT",
        tls="SASL_SSL" if attempt.sasl else "SSL (or SASL_SSL)",
        sasl="SASL_SSL" if attempt.tls else "SASL_PLAINTEXT",
    )
