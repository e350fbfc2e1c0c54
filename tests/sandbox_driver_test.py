"""The driver alone, without walls: its frames, and that it goes with its owner."""

import json
import pathlib
import struct
import subprocess
import sys

from lpo_jax import tasks

_DRIVER = pathlib.Path(tasks.__file__).with_name('sandbox_driver.py')
_SETUP = {'program': 'print(input())', 'isolated': False, 'memory_bytes': 1 << 30,
          'processes': 16, 'file_bytes': 1 << 20, 'output_bytes': 1 << 20}


def _frame(value):
  data = json.dumps(value).encode()
  return struct.pack('<Q', len(data)) + data


def _converse(*frames):
  """Return the (header, body) replies of a driver that gets these frames."""
  driver = subprocess.Popen([sys.executable, '-I', '-S', str(_DRIVER)],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  replies = []
  for frame in frames:
    driver.stdin.write(_frame(frame))
    driver.stdin.flush()
    head, body = struct.unpack('<QQ', driver.stdout.read(16))
    replies.append((json.loads(driver.stdout.read(head)), driver.stdout.read(body)))
  driver.stdin.close()
  assert driver.wait(20) == 0
  driver.stdout.close()
  return replies


def test_each_frame_has_its_reply_and_the_end_of_input_ends_it():
  ready, one, two = _converse(_SETUP, {'stdin': 'a', 'test_s': 20.0},
                              {'stdin': 'b', 'test_s': 20.0})
  assert ready == ({'status': 'ready'}, b'')
  assert one == ({'status': 'ok', 'clean': True}, b'a\n')
  assert two == ({'status': 'ok', 'clean': True}, b'b\n')


def test_large_inputs_and_outputs_pass_whole():
  text = 'x' * 900_000
  replies = _converse(_SETUP, {'stdin': text, 'test_s': 20.0})
  assert replies[1][1] == f'{text}\n'.encode()


def test_it_imports_nothing_of_ours():
  source = _DRIVER.read_text() + _DRIVER.with_name('sandbox_program.py').read_text()
  assert 'lpo_jax' not in source


def test_it_ends_its_test_and_itself_when_nobody_asks_any_more():
  driver = subprocess.Popen([sys.executable, '-I', '-S', str(_DRIVER)],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  endless = {**_SETUP, 'program': 'while True:\n  pass'}
  driver.stdin.write(_frame(endless) + _frame({'stdin': '', 'test_s': 600.0}))
  driver.stdin.flush()
  assert b'ready' in driver.stdout.read(16 + len('{"status": "ready"}'))
  driver.stdin.close()
  assert driver.wait(20) == 0
  driver.stdout.close()
