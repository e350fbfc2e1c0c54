"""The responses of an evaluation, problem by problem, so that a killed one goes on.

DIR/eval/<set>-<mark>.jsonl  one problem a line: id, prompt, answer (what a verifier
                             reads), responses, rewards, votes, truncated, lengths
DIR/eval/<set>-<mark>.done   who was asked what; then one line a finished batch
The mark is a hash of all that decides the responses and their verdicts, so that those
of another policy or setting are never mixed in. A batch is finished once its line
in .done is whole; it is written after the batch's problems are on the disk, and what a
kill left beyond the last such line is cut off.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Sequence

import jax

from lpo_jax import evaluate, hosts, manifest, rollout
from lpo_jax import metrics as metrics_lib
from lpo_jax import outcomes as outcomes_lib
from lpo_jax import policy as policies
from lpo_jax import tokenizer as tokenizers
from lpo_jax.types import Mean, Problem

FOLDER = 'eval'
_AT_ONCE = 64  # problems of which processes tell each other in one message


def policy_mark(policy: policies.Policy) -> str:
  """Return a hash of a policy's sizes, switches and weights, whatever the mesh."""
  arrays = manifest.describe(manifest.flatten(policy))['arrays']
  return _hash([dataclasses.asdict(policy.config), arrays])


def identity(policy: str, problems: Sequence[Problem], task: dict,
             tokenizer: tokenizers.Tokenizer, key: jax.Array,
             sampling: rollout.SamplingConfig, config: evaluate.EvalConfig) -> dict:
  """Return all that decides an evaluation's responses and verdicts, as JSON has it.

  Args:
    policy: its `policy_mark`.
    problems: of the set.
    task: name and options.
    tokenizer: of the policy.
    key: of the samples.
    sampling: how the set is sampled.
    config: how many responses are drawn.

  Raises:
    ValueError: an answer that JSON cannot hold; names the problem.
  """
  drawn = dataclasses.asdict(sampling)
  del drawn['mesh_shape'], drawn['apart']  # where, which decides no sample
  return {
    'policy': policy, 'task': task,
    'problems': _hash([_question(problem) for problem in problems]),
    'tokens': _hash([[int(i) for i in tokenizer.encode(problem.prompt)]
                     for problem in problems]),
    'stop_tokens': [int(i) for i in tokenizer.stop_tokens],
    'key': jax.random.key_data(key).tolist(), 'responses': config.responses,
    'sampling': drawn}


class Records:
  """The files of one set; every process holds one, the first writes."""

  def __init__(self, workdir: str, name: str, who: dict):
    """Find what an evaluation cut short has left.

    Args:
      workdir: the run's folder.
      name: of the set.
      who: the set's `identity`.

    Raises:
      ValueError: the records are damaged; says which file to move away.
    """
    self.path = pathlib.Path(workdir) / FOLDER / f'{name}-{_hash(who)}.jsonl'
    self.seconds = 0.0  # asking and judging took, over all its starts
    self.tell: Callable[[int], None] = lambda problems: None  # of each finished batch
    self._done, self._who = self.path.with_suffix('.done'), who
    self._size, self._kept, self._metrics = 0, [], []
    with hosts.agreeing():
      if hosts.first():
        self._open()
    count, self._metrics, self.seconds = hosts.gather(
      [len(self._kept), self._metrics, self.seconds])[0]
    self._kept = [outcome for start in range(0, count, _AT_ONCE) for outcome in
                  hosts.gather(self._kept[start:start + _AT_ONCE])[0]]
    self._began = time.monotonic()

  @property
  def problems(self) -> int:
    """How many problems' outcomes are already there."""
    return len(self._kept)

  def others(self) -> list[str]:
    """Return the names of this set's records by other policies or settings."""
    name = self.path.name.rpartition('-')[0]
    return sorted(path.name for path in self.path.parent.glob(f'{name}-*.jsonl')
                  if path.name.rpartition('-')[0] == name and path != self.path)

  def kept(self) -> tuple[list[outcomes_lib.Outcome], dict[str, Mean]]:
    """Return the outcomes and metrics of the finished batches; the clock starts."""
    metrics = {}
    for batch in self._metrics:
      metrics = metrics_lib.merge(
        metrics, {name: Mean(*pair) for name, pair in batch.items()})
    self._began = time.monotonic()
    return [outcomes_lib.Outcome(**outcome) for outcome in self._kept], metrics

  def add(self, problems: Sequence[Problem], outcomes: Sequence[outcomes_lib.Outcome],
          metrics: dict[str, Mean]) -> None:
    """Write one batch: its problems, then that they are there.

    Raises:
      RuntimeError: another evaluation has written to the file.
    """
    now = time.monotonic()
    seconds, self._began = now - self._began, now
    self.seconds += seconds
    if hosts.first():
      rows = [_question(problem) | dataclasses.asdict(outcome)
              for problem, outcome in zip(problems, outcomes, strict=True)]
      self._size = _append(self.path, rows, self._size)
      _append(self._done, [{
        'problems': len(problems), 'bytes': self._size, 'seconds': seconds,
        'metrics': {n: [mean.total, mean.count] for n, mean in metrics.items()}}])
    self.tell(len(problems))

  def _open(self) -> None:
    """Read the finished batches, and cut off what follows them."""
    self.path.parent.mkdir(parents=True, exist_ok=True)
    there = self.path.stat().st_size if self.path.exists() else 0
    lines = self._done.read_bytes().split(b'\n')[:-1] if self._done.exists() else []
    whole = []  # a kill cuts the last line at most
    for line in lines[1:]:
      batch = _object(line)
      if batch is None or batch['bytes'] > there:
        break
      whole.append(batch)
    self._size = whole[-1]['bytes'] if whole else 0
    self._read(whole)
    if whole:
      os.truncate(self.path, self._size)
      os.truncate(self._done, sum(len(line) + 1 for line in lines[:len(whole) + 1]))
    else:
      self.path.write_bytes(b'')
      self._done.write_bytes(b'')
      _append(self._done, [{'asked': self._who}])

  def _read(self, batches: list[dict]) -> None:
    fields = [field.name for field in dataclasses.fields(outcomes_lib.Outcome)
              if field.name != 'responses']
    data = self.path.read_bytes()[:self._size] if batches else b''
    rows = [_object(line) for line in data.split(b'\n')[:-1]]
    if None in rows or len(rows) != sum(batch['problems'] for batch in batches):
      raise ValueError(f'{self.path} is damaged: move it away to ask its set anew')
    self._kept = [{field: row[field] for field in fields} for row in rows]
    self._metrics = [batch['metrics'] for batch in batches]
    self.seconds = sum(batch['seconds'] for batch in batches)


def _question(problem: Problem) -> dict:
  question = {'id': problem.id, 'prompt': problem.prompt, 'answer': problem.answer}
  try:
    json.dumps(question)
  except (TypeError, ValueError) as error:
    raise ValueError(f'problem {problem.id!r}: its prompt or answer cannot be written '
                     f'as JSON ({error})') from error
  return question


def _object(line: bytes) -> dict | None:
  try:
    found = json.loads(line)
  except ValueError:
    return None
  return found if isinstance(found, dict) else None


def _append(path: pathlib.Path, rows: Sequence[dict], size: int | None = None) -> int:
  """Append one JSON object a line, onto the disk; return the file's new size."""
  text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
  with path.open('ab') as file:
    if size is not None and file.tell() != size:
      raise RuntimeError(f'{path} has {file.tell()} bytes, not {size}: another '
                         'evaluation writes to it; wait for its end')
    file.write(text.encode('utf-8', errors='surrogatepass'))
    file.flush()
    os.fsync(file.fileno())
    return file.tell()


def _hash(value) -> str:
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
