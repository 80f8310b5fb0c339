"""What is broken, and where. Each pattern stands exactly once in its file, or the list is stale."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutant:
    """One change of the project's code that breaks a promise, and the tests that must fail of it."""

    name: str
    path: str
    old: str
    new: str
    #: Arguments of pytest.
    tests: tuple[str, ...]

    def apply(self, root: Path) -> None:
        """Make the change in a copy of the project. Raises ValueError where the pattern is not there once."""
        file = root / self.path
        text = file.read_text()
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: the pattern stands {text.count(self.old)} times in {self.path}")
        file.write_text(text.replace(self.old, self.new))


_MACHINE = "tests/ledger/test_machine.py"

MUTANTS = (
    Mutant(
        "there is no reconciler",
        "ledger/reconciler.py",
        "        if not self._active():\n            return 0\n",
        "        return 0\n",
        ("tests/fleet/test_doorbells.py", "-k", "flushed"),
    ),
    Mutant(
        "the join is not in the ledger: only a message tells that all parts are there",
        "ledger/lua/record.lua",
        "redis.call('ZADD', steps_key('aggregate'), now_ms() + tonumber(ARGV[6]), batch)",
        "return { 'ready' }",
        (_MACHINE,),
    ),
    Mutant(
        "the join is not atomic: a part is counted before it is known to be the first",
        "ledger/lua/record.lua",
        "local part = redis.call('HGET', key, 'part:' .. model)\n",
        "local part = redis.call('HGET', key, 'part:' .. model)\n"
        "if part then redis.call('HINCRBY', key, 'wait', -1) end\n",
        (_MACHINE,),
    ),
    Mutant(
        "a batch is closed before the store has answered",
        "worker/aggregator.py",
        "            self._numerics().settle(",
        "            self.ledger.steps.close(taken, len(points), 0, 0, 0, [])\n"
        "            self._numerics().settle(",
        ("tests/fleet/test_server_store.py", "-k", "dies_or_hangs"),
    ),
    Mutant(
        "a micro-batch that fails is not bisected",
        "worker/encoders/loop.py",
        "        if len(rows) == 1:\n",
        "        for row in rows[1:]:\n            self.reject(row, str(error))\n        if rows:\n",
        ("tests/worker/test_encoders_encode.py",),
    ),
    Mutant(
        "all attempts write to one blob",
        "ledger/blobs.py",
        'return f"{PREFIX}blob:{batch}:{model}:{token}"',
        'return f"{PREFIX}blob:{batch}:{model}:" + "t" * len(token[:1])',
        ("tests/ledger/test_steps.py",),
    ),
    Mutant(
        "all stagings of a batch write to one blob",
        "ledger/blobs.py",
        'return f"{PREFIX}blob:{batch}:text:{token}"',
        'return f"{PREFIX}blob:{batch}:text:" + "t" * len(token[:1])',
        (_MACHINE,),
    ),
    Mutant(
        "a part of another space is accepted",
        "ledger/lua/record.lua",
        "if space ~= ARGV[5] then return { 'space', space or '' } end\n",
        "",
        ("tests/ledger/test_steps.py",),
    ),
    Mutant(
        "a part is recorded although the server refused its vectors",
        "ledger/lua/record.lua",
        "if ARGV[7] ~= '' and redis.call('EXISTS', ARGV[7]) == 0 then return { 'unwritten' } end\n",
        "",
        ("tests/ledger/test_round_trips.py",),
    ),
    Mutant(
        "the embedded store's upsert is unconditional",
        "store/edge_operations.py",
        "edge.UpdateOperation.upsert_points(rows, condition=not_newer(started))",
        "edge.UpdateOperation.upsert_points(rows)",
        ("tests/store/test_store.py",),
    ),
    Mutant(
        "totals move without a look at the batch",
        "ledger/lua/close.lua",
        "if redis.call('EXISTS', key) == 0 then return { 'closed' } end\n"
        "local job = redis.call('HGET', key, 'job')\n",
        "local job = redis.call('HGET', key, 'job') or string.match(batch, '^[^.]+')\n"
        "if redis.call('EXISTS', key) == 0 then redis.call('HSET', key, 'models', '[]') end\n",
        (_MACHINE,),
    ),
    Mutant(
        "what is derived is not normalised again",
        "worker/merge.py",
        "    return normalise(values[:, :width])\n",
        "    return values[:, :width]\n",
        ("tests/worker/test_merge.py",),
    ),
    Mutant(
        "a lease keeps nobody out",
        "ledger/lua/take.lua",
        "if holder and due > now then return { 'live' } end\n",
        "",
        (_MACHINE,),
    ),
    Mutant(
        "a backlog is rung whatever already waits",
        "ledger/lua/due.lua",
        " - tonumber(ARGV[2])\n",
        "\n",
        (_MACHINE,),
    ),
    Mutant(
        "a batch that ends keeps its credit",
        "ledger/lua/prelude.lua",
        "local left = redis.call('DECRBY', P .. 'credit', credit)\n",
        "local left = credit\n",
        (_MACHINE,),
    ),
    Mutant(
        "vectors that are not numbers go through",
        "worker/encoders/check.py",
        "np.isfinite(",
        "np.isreal(",
        ("tests/worker/test_encoders_encode.py",),
    ),
    Mutant(
        "who slept takes back nothing that was held against its chunk",
        "ledger/lua/prelude.lua",
        "  redis.call('HDEL', key, strike)\n",
        "",
        ("tests/ledger/test_strikes.py",),
    ),
    Mutant(
        "the watchdog does not see messages that nobody takes",
        "worker/watchdog.py",
        "if self._is_well() and not lane & busy}\n",
        "if False}\n",
        ("tests/worker/test_watchdog.py",),
    ),
    Mutant(
        "a compressed message is let in",
        "registry/envelopes.py",
        'case {"headers": {"compression": packed}} if packed:',
        'case {"headers": {"compression": packed}} if packed == 1:',
        ("tests/registry/test_envelopes.py",),
    ),
    Mutant(
        "one poisoned text lowers the budget of its device",
        "worker/encoders/loop.py",
        "if not short.rejected:",
        "if True:",
        ("tests/worker/test_budget.py", "-k", "poisoned"),
    ),
    Mutant(
        "indexing is put off before it is noted what stood",
        "store/checked.py",
        "        former = loads[0].former if loads else state.threshold\n",
        "        former = loads[0].former if loads else state.threshold\n        found.set_threshold(0)\n",
        ("tests/store/test_bulk.py", "-k", "grpc and anywhere"),
    ),
)
