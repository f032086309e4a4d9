"""What an alert shows of an event beyond its key, by ECS block, and the order in which equal times are settled
(semantics.md §5).
"""

from __future__ import annotations

import json

from streamdetect.model import AddressKey, ContextTuple, ContextValue, EventContext, address_of


def sorts_after(context: ContextTuple, other: ContextTuple, address_key: AddressKey) -> bool:
    """Whether of two events in the same millisecond the first is the latest: its context sorts last as JSON text."""
    address = address_of(address_key)
    return context_text(context, address) > context_text(other, address)


def context_text(context: ContextTuple, address: str | None) -> str:
    """The context as compact JSON with sorted keys."""
    blocks = context_blocks(context, address)
    return json.dumps(blocks, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def context_blocks(context: ContextTuple, address: str | None) -> dict[str, dict[str, object]]:
    """The context by ECS block; missing values and empty blocks are left out."""
    event = EventContext._make(context)
    blocks: dict[str, dict[str, ContextValue | int]] = {
        "host": {"id": event.host_id, "name": event.host_name},
        "process": {"entity_id": event.entity_id, "pid": event.pid, "executable": event.executable},
        "user": {"name": event.user_name, "domain": event.user_domain},
        "destination": {
            "ip": address if event.ip is None else event.ip,
            "port": event.port,
            "domain": event.domain,
        },
    }
    present: dict[str, dict[str, object]] = {}
    for name, block in blocks.items():
        values: dict[str, object] = {key: value for key, value in block.items() if value is not None}
        if values:
            present[name] = values
    return present
