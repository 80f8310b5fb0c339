"""torch.compile for a model's layers: tried when a worker starts, kept where it is right and faster.

Layers of one class share what is compiled, so that takes as long for one as for all; what comes before and
after them stays as it is. Lengths and numbers of texts are symbols in it: it is compiled for the few kinds of
micro-batches that `Trial.shapes` shows it, and never again while the worker serves. What fits none of them
goes through the layers as they are.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from registry.errors import FleetError, InfrastructureError
from worker.encoders.learned import GAIN, TURNS, Learned

logger = logging.getLogger(__name__)

#: Name of the file in the data directory that keeps what was found, by model, dtype, attention, device and
#: version of torch: with `GAINED` after the name how many times as fast compiled layers are, in thousandths;
#: with `BEGUN` how many processes began to compile and were not seen to end it.
FILE = "compiled.json"
GAINED = ", compiled"
BEGUN = ", begun"
#: So many processes may end while they compile, for whatever reason, before layers stay as they are.
MOST_BEGUN = 2

Answer = TypeVar("Answer")


class Trial(Protocol[Answer]):
    """Passes of a loaded model."""

    def shapes(self) -> None:
        """A pass of each kind of micro-batch that is to be compiled for."""
        ...

    def load(self) -> None:
        """A pass as work brings it, to be timed."""
        ...

    def answer(self) -> Answer:
        """What the model gives for some texts."""
        ...

    def problem(self, eager: Answer, compiled: Answer) -> str:
        """What is wrong with one answer beside another; nothing if they agree."""
        ...


class Layers:
    """The layers of a torch model, as they are until they are settled."""

    def __init__(
        self,
        model: nn.Module,
        *,
        mode: Literal["auto", "on", "off"],
        name: str,
        learned: Learned,
        cache: Path,
        obstacle: str = "",
    ) -> None:
        """`auto`: compiled where that was found to be faster; `on`: wherever it can be; `off`: never.

        Parameters:
            name: whose they are, for `learned` and for people.
            cache: a directory for what was compiled.
            obstacle: why these cannot be compiled; empty if they can.
        """
        self._layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
        self._mode, self._name, self._learned, self._cache = mode, name, learned, cache
        self._obstacle = obstacle or ("" if self._layers else "it has no layers of transformers' own")
        #: How many times as fast they are compiled; 0 where it is not known.
        self.gain = 0.0

    def settle(self, trial: Trial[Answer]) -> bool:
        """Compile the layers, or leave them; whether they are compiled.

        To be called before anything else uses the model. Raises FleetError where they are to be compiled and
        cannot be, InfrastructureError if the device fails.
        """
        if self._mode == "off":
            return False
        if self._obstacle:
            self._refuse(self._obstacle)
            return False
        self.gain = self._learned.get(self._name + GAINED) / 1000
        if self._mode == "auto" and 0 < self.gain < GAIN:
            return False
        begun = self._learned.get(self._name + BEGUN)
        if begun >= MOST_BEGUN:
            self._refuse(
                f"{begun} processes ended while they compiled; delete {self._learned.path} to try again"
            )
            return False
        eager = trial.answer()
        self._learned.note(self._name + BEGUN, begun + 1)
        kept = False
        try:
            kept = self._try(trial, eager)
        except InfrastructureError:
            # A device that failed may fail again: the next start is the last to try.
            raise
        except BaseException:
            self._learned.note(self._name + BEGUN, begun)
            raise
        finally:
            if not kept:
                self._undo()
        self._learned.note(self._name + BEGUN, 0)
        return kept

    def _try(self, trial: Trial[Answer], eager: Answer) -> bool:
        began = time.perf_counter()
        self._compile()
        try:
            trial.shapes()
        except InfrastructureError:
            raise
        except Exception as error:  # torch, its compilers and what they call raise what they like
            self._refuse(_said(error))
            return False
        seconds = time.perf_counter() - began
        # From here on what is not compiled is not going to be.
        torch.compiler.set_stance("eager_on_recompile")
        if problem := trial.problem(eager, trial.answer()):
            self._refuse(f"compiled, {problem}")
            return False
        if not self.gain:
            self.gain = _gain(trial)
            self._learned.note(self._name + GAINED, max(1, round(1000 * self.gain)))
        if self._mode == "auto" and self.gain < GAIN:
            logger.info("%s: layers stay as they are: compiled, %.2f times as fast", self._name, self.gain)
            return False
        logger.info(
            "%s: layers compiled in %.1f s, %.2f times as fast as before", self._name, seconds, self.gain
        )
        return True

    def _compile(self) -> None:
        # What is kept there is code; torch's own place is one that others on the machine could fill first.
        self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(self._cache))
        # Processes that compile beside this one would stay for as long as it lives.
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        torch.compiler.set_stance("default")
        for layer in self._layers:
            layer.forward = torch.compile(layer.forward, dynamic=True)

    def _undo(self) -> None:
        for layer in self._layers:
            vars(layer).pop("forward", None)
        torch.compiler.reset()
        torch.compiler.set_stance("default")

    def _refuse(self, why: str) -> None:
        """Say why they stay as they are. Raises FleetError where that was not for this program to decide."""
        said = f"{self._name}: torch.compile is of no use: {why}"
        if self._mode == "on":
            raise FleetError(f"{said}; V5_COMPILE=auto or off does without")
        logger.warning("%s; layers stay as they are", said)


def _gain(trial: Trial[Answer]) -> float:
    """How many times as fast compiled layers are: the median of turns taken with the layers as they are."""
    gains = []
    for _ in range(TURNS + 1):
        with torch.compiler.set_stance("force_eager"):
            eager = _timed(trial)
        gains.append(eager / _timed(trial))
    # A shape's first pass takes longer than the next.
    return statistics.median(gains[1:])


def _timed(trial: Trial[Answer]) -> float:
    begun = time.perf_counter()
    trial.load()
    return time.perf_counter() - begun


def _said(error: Exception) -> str:
    """The first line: what follows are thousands of lines of code, and hints for torch's own developers."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
