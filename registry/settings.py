"""Settings of every process: `V5_*` in the environment or in `.env`."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from registry.errors import UsageError
from registry.redis_address import RedisAddress, Tls, read_address

MIB = 1 << 20


class Settings(BaseSettings):
    """One process' settings. Sizes are bytes, times seconds, unless the name says otherwise."""

    model_config = SettingsConfigDict(
        env_prefix="V5_", env_file=".env", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    #: Where a local fleet keeps everything: Redis' files, the store, logs.
    data_dir: Path = Field(default_factory=lambda: _xdg("XDG_DATA_HOME", ".local/share") / "v5")
    #: Where exported and prepared weights are cached; survives the data directory.
    cache_dir: Path = Field(default_factory=lambda: _xdg("XDG_CACHE_HOME", ".cache") / "v5")
    #: Redis or Valkey of the ledger: `redis://`, `rediss://` (TLS) or `unix://`; empty: a private one.
    redis_url: str = Field(default="", repr=False)
    #: Celery's broker, a Redis or Valkey; empty: the same as redis_url.
    broker_url: str = Field(default="", repr=False)
    #: Servers for blobs, chosen by batch, with commas between them or as JSON; empty: the same as redis_url.
    blob_urls: Annotated[tuple[str, ...], NoDecode] = Field(default=(), repr=False)
    #: Authorities that the `rediss://` servers' certificates are checked against besides the system's. PEM.
    redis_tls_ca: Path | None = None
    #: This side's certificate and its key, where the servers ask for one. PEM.
    redis_tls_cert: Path | None = None
    redis_tls_key: Path | None = None
    #: False: a `rediss://` server's certificate is not checked; whoever is on the way can read along.
    redis_tls_verify: bool = True
    #: A Qdrant server, `http://host:6333` or `https://…`; empty: the embedded store in the data directory.
    qdrant_url: str = ""
    #: Only the aggregator needs it.
    qdrant_api_key: SecretStr = SecretStr("")
    #: False: everything goes by REST, over the URL's own port; vectors then travel as text.
    qdrant_grpc: bool = True
    qdrant_grpc_port: int = Field(default=6334, ge=1, le=65535)
    #: The authority that the server's certificate is checked against instead of the system's. PEM.
    qdrant_ca: Path | None = None
    #: How long one request to Qdrant may take.
    qdrant_seconds: float = Field(default=60.0, gt=0)
    #: How often a failed request is repeated at once; after that its batch waits, and others go on.
    qdrant_retries: int = Field(default=3, ge=0, le=20)
    #: Largest request. A Qdrant server takes 32 MiB by REST unless it is told otherwise.
    qdrant_request_bytes: int = Field(default=16 * MIB, ge=64 * 1024)
    #: Snapshot directories by model name, for weights that are already on disk.
    weights: dict[str, Path] = Field(default_factory=dict)
    #: Device of this process' encoder: `cpu`, `cuda:0`, …; empty: the first CUDA device, else the CPU (said).
    device: str = ""
    #: Number format of this process' model on a GPU; empty: the model's own. A CPU computes in float32.
    dtype: Literal["", "float32", "float16", "bfloat16"] = ""
    #: `unpadded`: texts go through a torch model without padding between them; `padded`: with it; `auto`:
    #: without where the GPU has a kernel for it (float16 or bfloat16, compute capability 8.0 or newer).
    attention: Literal["auto", "padded", "unpadded"] = "auto"
    #: torch.compile for a torch model's layers: `auto`: on a GPU, where a worker's first start on it found
    #: that to be faster; `on`: on any device, or the worker does not start; `off`: on none.
    compile: Literal["auto", "on", "off"] = "auto"
    #: True: a GPU may round the factors of float32 products to TF32's 10 bits. Faster; recorded.
    tf32: bool = False
    #: CPU threads of a forward pass; 0: all cores this process may use.
    threads: int = Field(default=0, ge=0)
    #: Tokens of a micro-batch, padding included; 0: what a worker's first start finds fastest on its device,
    #: or less where that once had no memory for it (`budgets.json` in the data directory). What is set here
    #: is neither remembered nor forgotten.
    micro_batch_tokens: int = Field(default=0, ge=0)
    #: Serve made-up vectors, in spaces of their own (tests, rehearsals).
    fake_encoders: bool = False
    #: Serve the real architectures with whatever weights V5_WEIGHTS names, in the spaces of made-up vectors
    #: (tests, rehearsals).
    fake_weights: bool = False
    #: Seconds one fake forward pass takes per chunk.
    fake_seconds: float = Field(default=0.0, ge=0)
    #: Padded tokens for which a fake device has memory; 0: any number.
    fake_memory_tokens: int = Field(default=0, ge=0)
    #: Batches of a worker between two looks at its golden vectors.
    golden_batches: int = Field(default=500, ge=1)

    #: A step's lease: how long a silent worker keeps a batch from the others.
    lease_seconds: float = Field(default=60.0, gt=0)
    #: How long a rung step may stay untouched before the reconciler rings again.
    ring_seconds: float = Field(default=30.0, gt=0)
    #: How often the reconciler looks.
    reconcile_seconds: float = Field(default=2.0, gt=0)
    #: A process that has not said it lives for this long is taken for dead.
    alive_seconds: float = Field(default=15.0, gt=0)
    #: A process that is idle and takes nothing for this long, though messages wait in its queue, ends itself.
    stuck_seconds: float = Field(default=120.0, gt=0)
    #: A step without progress (no forward pass ends, no request to the store is answered) for this long ends
    #: its process; longer than the longest forward pass. Loading a model may be silent for as long.
    hang_seconds: float = Field(default=600.0, gt=0)
    #: A process that gives no sign of life at all for this long is ended by its own timer or its supervisor.
    silent_seconds: float = Field(default=60.0, gt=0)
    #: Blobs of an open batch are renewed well before this; an orphan dies after it.
    blob_ttl_seconds: int = Field(default=3 * 86400, gt=60)
    #: Text and reserved vectors in flight, over all producers.
    #: 0: half of the blob server's maxmemory, or 1 GiB where it has none.
    inflight_bytes: int = Field(default=0, ge=0)

    #: A batch is closed at this many chunks, or at a sixteenth of what its job has staged …
    batch_chunks: int = Field(default=256, ge=1, le=8192)
    #: … or at this much text, whichever comes first.
    batch_bytes: int = Field(default=MIB // 4, ge=1024)
    #: So many chunks are read ahead and sorted by length before batches are cut.
    window_chunks: int = Field(default=2048, ge=1, le=10_000)
    #: … or this much text.
    window_bytes: int = Field(default=16 * MIB, ge=1024)
    #: A chunk with more text than this is set aside with a message.
    max_chunk_bytes: int = Field(default=MIB, ge=1024)
    #: A job pauses at this many dead letters.
    max_dead: int = Field(default=1000, ge=1)
    #: Seconds a request (search, comparison with the store) may take in all, repeats included.
    request_seconds: float = Field(default=120.0, gt=0)
    #: How long a producer waits for Redis or the store to come back before it gives up.
    patience_seconds: float = Field(default=600.0, ge=0)
    #: Largest memory of the private Redis of a local fleet.
    redis_maxmemory: int = Field(default=1024 * MIB, ge=8 * MIB)
    #: Where `v5 flower` serves.
    flower_address: str = Field(default="127.0.0.1", min_length=1)
    flower_port: int = Field(default=5555, ge=0, le=65535)
    #: Path under which a proxy serves it, such as `flower`.
    flower_url_prefix: str = Field(default="", pattern="^/?([a-zA-Z0-9_-]+/?)*$")
    flower_user: str = Field(default="v5", min_length=1)
    #: Empty: one is made and kept in `flower.password` in the data directory.
    flower_password: SecretStr = SecretStr("")
    log_level: str = "INFO"

    @property
    def redis_socket(self) -> Path:
        """Unix socket of the private server; moved to a short path where the data directory's is too long."""
        direct = self.data_dir.absolute() / "redis.sock"
        # sockaddr_un holds 108 bytes, the closing NUL included.
        if len(os.fsencode(direct)) < 100:
            return direct
        tag = hashlib.blake2b(os.fsencode(self.data_dir.absolute()), digest_size=8).hexdigest()
        return Path(tempfile.gettempdir()) / f"v5-{os.getuid()}-{tag}" / "redis.sock"

    @property
    def made_up(self) -> bool:
        """Whether this fleet's vectors mean nothing, and live in spaces of their own."""
        return self.fake_encoders or self.fake_weights

    @property
    def embedded_redis(self) -> bool:
        """Whether the ledger is the local fleet's private server."""
        return not self.redis_url

    @property
    def ledger_address(self) -> RedisAddress:
        """The ledger's server."""
        if self.embedded_redis:
            return RedisAddress(path=str(self.redis_socket))
        return self._address("V5_REDIS_URL", self.redis_url)

    @property
    def broker_address(self) -> RedisAddress:
        """The broker's server."""
        return self._address("V5_BROKER_URL", self.broker_url) if self.broker_url else self.ledger_address

    @property
    def blob_addresses(self) -> tuple[RedisAddress, ...]:
        """The blobs' servers."""
        named = tuple(self._address("V5_BLOB_URLS", url) for url in self.blob_urls)
        return named or (self.ledger_address,)

    @property
    def ledger_url(self) -> str:
        """URL of the ledger's server for redis-py."""
        return self.ledger_address.url

    @property
    def celery_url(self) -> str:
        """URL of the broker for kombu."""
        return self.broker_address.celery_url

    def _address(self, setting: str, url: str) -> RedisAddress:
        tls = Tls(self.redis_tls_ca, self.redis_tls_cert, self.redis_tls_key, verify=self.redis_tls_verify)
        return read_address(url, setting, tls)

    @field_validator("blob_urls", mode="before")
    @classmethod
    def _split_urls(cls, value: object) -> object:
        """`redis://a, redis://b` or `["redis://a", "redis://b"]`; a comma inside a URL is part of it."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            try:
                return json.loads(value)
            except ValueError:
                raise ValueError("neither a JSON list nor URLs separated by commas") from None
        return [url for url in re.split(r"[\s,]+(?=[a-z+]+://)", value.strip(" ,")) if url]

    @model_validator(mode="after")
    def _addresses_can_be_read(self) -> Settings:
        """A wrong address stops the command before any work. Raises UsageError."""
        addresses = (self.ledger_address, self.broker_address, *self.blob_addresses)
        files = (self.redis_tls_ca, self.redis_tls_cert, self.redis_tls_key)
        if any(files) and not any(a.tls or a.path for a in addresses):
            raise UsageError(
                "V5_REDIS_TLS_… is set, but no server is spoken to over TLS; write rediss:// instead of redis://"
            )
        return self


def _xdg(variable: str, fallback: str) -> Path:
    given = os.environ.get(variable)
    return Path(given) if given else Path.home() / fallback


def load_settings(**overrides: object) -> Settings:
    """Read the settings; `overrides` win over the environment. Raises UsageError naming the wrong one."""
    try:
        return Settings(**{k: v for k, v in overrides.items() if v is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        said = "; ".join(
            f"V5_{'_'.join(str(p) for p in e['loc'][:1]).upper()}: {e['msg']}" for e in error.errors()
        )
        raise UsageError(f"a setting is wrong: {said}") from None
    except ValueError as error:  # pydantic-settings: a value that is not the JSON it must be
        raise UsageError(f"a setting is wrong: {error}") from None
