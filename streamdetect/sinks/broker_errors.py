"""What the broker will refuse again and again, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from kafka import errors as client_errors  # type: ignore[import-untyped]  # it has no types at all

from streamdetect.sinks.watchdog import HungError

ErrorTypes = tuple[type[Exception], ...]

_ABOUT_A_TOPIC: tuple[tuple[ErrorTypes, str], ...] = (
    (
        (client_errors.MessageSizeTooLargeError, client_errors.RecordListTooLargeError),
        "Raise max.message.bytes of the topic; for dead letters it has to be larger than that of the topics we read.",
    ),
    ((client_errors.TopicAuthorizationFailedError,), "Grant our user WRITE and DESCRIBE on the topic."),
    (
        (client_errors.InvalidTimestampError,),
        "The topic does not take this time: see message.timestamp.before.max.ms and .after.max.ms of the topic.",
    ),
    (
        (client_errors.InvalidRecordError,),
        "A topic with cleanup.policy=compact takes no record without a key: set it to delete.",
    ),
    (
        (client_errors.PolicyViolationError, client_errors.UnsupportedCompressionTypeError),
        "The brokers do not allow this: see their log, and kafka.client in the configuration.",
    ),
)
_ABOUT_US: tuple[tuple[ErrorTypes, str], ...] = (
    ((client_errors.GroupAuthorizationFailedError,), "Grant our user READ on the group kafka.group_id."),
    (
        (client_errors.TransactionalIdAuthorizationFailedError,),
        "Grant our user WRITE and DESCRIBE on the transactional id, which is kafka.group_id.",
    ),
    ((client_errors.ClusterAuthorizationFailedError,), "Grant our user IDEMPOTENT_WRITE on the cluster."),
    (
        (client_errors.InvalidTransactionTimeoutError,),
        "Lower kafka.client.transaction_timeout_ms: the brokers' transaction.max.timeout.ms is less.",
    ),
)
# Right after a broker's start a topic may be unknown for a moment, so this alone is no reason to give up.
_PASSING: tuple[tuple[ErrorTypes, str], ...] = (
    (
        (client_errors.UnknownTopicOrPartitionError,),
        "The topic has gone: create it again, or correct its name in the configuration.",
    ),
    (
        (client_errors.KafkaTimeoutError, HungError),
        "The brokers did not confirm in time: check that they run, and the in-sync replicas of the topics we write to, "
        "__transaction_state and __consumer_offsets.",
    ),
)


def is_final(error: BaseException) -> bool:
    """Whether another attempt would end the same way."""
    return _found(error, _ABOUT_A_TOPIC + _ABOUT_US) is not None


def is_about_us(error: BaseException) -> bool:
    """Whether it has nothing to do with a topic."""
    return _found(error, _ABOUT_US) is not None


def hint(error: BaseException) -> str | None:
    """What to do about it, if we know."""
    return _found(error, _ABOUT_A_TOPIC + _ABOUT_US + _PASSING)


def advice(error: BaseException) -> str:
    """What to do about it."""
    return (
        hint(error)
        or "See the brokers' log and start again; nothing that was not written is counted as written."
    )


def refused_positions(error: BaseException, topics: Sequence[str]) -> str | None:
    """What to tell when the broker does not let us commit positions of the topics we read; None for another error."""
    if _found(error, _ABOUT_A_TOPIC) is None:
        return None
    return f"Kafka did not take positions of {', '.join(topics)}: {error}. Grant our user READ on the topics."


def _found(error: BaseException, table: tuple[tuple[ErrorTypes, str], ...]) -> str | None:
    """Later calls of a failed producer raise a plain KafkaError whose text holds the name of the first."""
    said = str(error)
    for kinds, text in table:
        if isinstance(error, kinds) or any(kind.__name__ in said for kind in kinds):
            return text
    return None
