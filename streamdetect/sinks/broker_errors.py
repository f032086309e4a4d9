"""Errors of the brokers: which are permanent, and what to do about each."""

from __future__ import annotations

from collections.abc import Sequence

from kafka import errors as client_errors  # type: ignore[import-untyped]  # it has no types at all

from streamdetect.sinks.watchdog import HungError

ErrorTypes = tuple[type[Exception], ...]

_TOPIC_ERRORS: tuple[tuple[ErrorTypes, str], ...] = (
    (
        (client_errors.MessageSizeTooLargeError, client_errors.RecordListTooLargeError),
        "Raise max.message.bytes of the topic; for dead letters it has to be larger than that of the topics read.",
    ),
    (
        (client_errors.TopicAuthorizationFailedError,),
        "Grant the configured user WRITE and DESCRIBE on the topic.",
    ),
    (
        (client_errors.InvalidTimestampError,),
        "The topic does not accept this timestamp: see its message.timestamp.before.max.ms and .after.max.ms.",
    ),
    (
        (client_errors.InvalidRecordError,),
        "A topic with cleanup.policy=compact accepts no records without a key: set it to delete.",
    ),
    (
        (client_errors.PolicyViolationError, client_errors.UnsupportedCompressionTypeError),
        "The brokers do not allow this: see their log, and kafka.client in the configuration.",
    ),
)
_PRODUCER_ERRORS: tuple[tuple[ErrorTypes, str], ...] = (
    (
        (client_errors.GroupAuthorizationFailedError,),
        "Grant the configured user READ on the group kafka.group_id.",
    ),
    (
        (client_errors.TransactionalIdAuthorizationFailedError,),
        "Grant the configured user WRITE and DESCRIBE on the transactional id, which is kafka.group_id.",
    ),
    (
        (client_errors.ClusterAuthorizationFailedError,),
        "Grant the configured user IDEMPOTENT_WRITE on the cluster.",
    ),
    (
        (client_errors.InvalidTransactionTimeoutError,),
        "Lower kafka.client.transaction_timeout_ms: the brokers' transaction.max.timeout.ms is less.",
    ),
)
# Retried: right after the start of a broker a topic may be unknown for a moment.
_TRANSIENT_ERRORS: tuple[tuple[ErrorTypes, str], ...] = (
    (
        (client_errors.UnknownTopicOrPartitionError,),
        "The topic does not exist any more: create it again, or correct its name in the configuration.",
    ),
    (
        (client_errors.KafkaTimeoutError, HungError),
        "The brokers did not confirm in time: check that they run, and the in-sync replicas of the topics written, "
        "__transaction_state and __consumer_offsets.",
    ),
)


def is_final(error: BaseException) -> bool:
    """Whether the error is permanent: a retry would fail in the same way."""
    return _advice_in(error, _TOPIC_ERRORS + _PRODUCER_ERRORS) is not None


def is_about_producer(error: BaseException) -> bool:
    """Whether the cause is the user's permissions or the settings of the producer, not a topic."""
    return _advice_in(error, _PRODUCER_ERRORS) is not None


def hint(error: BaseException) -> str | None:
    """What to do about a known error, else None."""
    return _advice_in(error, _TOPIC_ERRORS + _PRODUCER_ERRORS + _TRANSIENT_ERRORS)


def advice(error: BaseException) -> str:
    """What to do about the error."""
    return hint(error) or "See the brokers' log and start again; only what was written counts as published."


def refused_positions(error: BaseException, topics: Sequence[str]) -> str | None:
    """The message when the broker refuses committed offsets of the topics read; None for another error."""
    if _advice_in(error, _TOPIC_ERRORS) is None:
        return None
    names = ", ".join(topics)
    return f"Kafka did not accept offsets of {names}: {error}. Grant the configured user READ on the topics."


def _advice_in(error: BaseException, table: tuple[tuple[ErrorTypes, str], ...]) -> str | None:
    """Searches the text too: later calls of a failed producer raise a plain KafkaError that names the first error."""
    message = str(error)
    for kinds, text in table:
        if isinstance(error, kinds) or any(kind.__name__ in message for kind in kinds):
            return text
    return None
