"""One process of the grading pool: verdicts on request, until its owner is gone.

Started by `grading` without jax; it imports the verdict's module alone. Requests come
pickled on stdin, replies go as JSON lines to stdout. The kernel kills it when the
thread that owns it ends, so that no signal to the trainer leaves it behind.
"""

import ctypes
import importlib
import json
import os
import pickle
import signal
import struct
import sys

HEADER = struct.Struct('<Q')


def serve() -> None:
  """Answer requests; argv holds the owner's process id and 'module:function'."""
  ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
  if os.getppid() != int(sys.argv[2]):
    return
  replies = os.dup(1)
  os.dup2(2, 1)  # nothing a verdict prints may look like a reply
  module, _, name = sys.argv[3].partition(':')
  try:
    function = getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError) as error:
    _reply(replies, {'fatal': f'{type(error).__name__}: {error}'})
    return
  _reply(replies, {'ready': True})
  while head := sys.stdin.buffer.read(HEADER.size):
    answer, text, options = pickle.loads(
      sys.stdin.buffer.read(HEADER.unpack(head)[0]))
    _reply(replies, _verdict(function, answer, text, options))


def _verdict(function, answer, text: str, options: dict) -> dict:
  try:
    found = function(answer, text, **options)
    reward, note = found if isinstance(found, tuple) else (found, '')
    return {'reward': float(reward), 'note': note}
  except (ImportError, RuntimeError) as error:
    if isinstance(error, RecursionError):
      return {'reward': 0.0, 'note': 'error', 'why': 'RecursionError'}
    return {'fatal': f'{type(error).__name__}: {error}'}
  except Exception as error:
    return {'reward': 0.0, 'note': 'error', 'why': f'{type(error).__name__}: {error}'}


def _reply(replies: int, reply: dict) -> None:
  data = json.dumps(reply).encode() + b'\n'
  while data:
    data = data[os.write(replies, data):]
