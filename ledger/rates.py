"""How fast each model runs on each device, as its workers measured it: for forecasts, never for decisions."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from ledger.server import Redis, named_errors
from registry.names import PREFIX

_KEY = f"{PREFIX}rates"


@dataclass(frozen=True)
class Rate:
    """One worker's throughput while it has work."""

    #: Tokens through the model, after truncation.
    tokens_per_second: float
    chunks_per_second: float
    #: UTF-8 bytes of text per token, before truncation; prompts and special tokens count as tokens.
    bytes_per_token: float
    #: When it was measured. Unix seconds.
    at: float


def rated_as(model: str, *, made_up: bool) -> str:
    """The name under which a model's rates stand; those of a rehearsal must not pass for the model's own."""
    return f"{model} (made up)" if made_up else model


class Rates:
    """The measured rates, one per model (see `rated_as`) and device; the last worker to say wins."""

    def __init__(self, client: Redis) -> None:
        self._redis = client

    def note(self, model: str, device: str, rate: Rate) -> None:
        """Remember a rate. Raises LedgerFull or LedgerUnavailable."""
        with named_errors():
            self._redis.hset(_KEY, f"{model}|{device}", json.dumps(asdict(rate)))

    def all(self) -> dict[tuple[str, str], Rate]:
        """Every rate that was ever measured, by model and device."""
        with named_errors():
            found = self._redis.hgetall(_KEY)
        rates = {}
        for field, value in found.items():
            model, _, device = field.decode().partition("|")
            rates[model, device] = Rate(**json.loads(value))
        return rates
