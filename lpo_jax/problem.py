"""What is asked and what a verifier needs: the one noun that needs no jax.

`types` offers it beside the others. Tasks import it from here, so that a process that
grades starts without jax.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Prefix:
  """The beginning of a response, which what is sampled goes on from."""

  tokens: tuple[int, ...]
  text: str


@dataclasses.dataclass(frozen=True)
class Problem:
  """One question on the host: what is asked and what a verifier needs to judge it."""

  prompt: Any  # text, or a list of {'role', 'content'} messages
  answer: Any  # whatever the task's verifier reads
  id: str  # unique within its split; names the problem in errors and logs
  images: tuple | None = None
  prefix: Prefix | None = None  # of every response: see `step_level`
