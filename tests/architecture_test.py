"""The house keeps its shape: one-way imports, effects at the edges, small files.

Read from the sources with `ast`, so nothing is imported. A new module needs a line
in LAYERS; an import between two modules of one layer needs one in SIDEWAYS.
"""

import ast
import importlib.util
import itertools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'lpo_jax'

# Lowest first. A module may import from the layers below its own. A package's name
# stands for all its modules, which may import each other but not in a circle.
LAYERS = (
  {'problem'},
  {'types'},
  {'simplex', 'baselines'},
  {
    'exact', 'objective', 'sequence', 'sharding', 'optimizer', 'tokenizer', 'metrics',
    'phases', 'manifest', 'hardware', 'allocator', 'compilation', 'cores', 'hosts',
    'hub',
    'rewards', 'schedule', 'methods', 'images', 'page', 'tilt', 'refill', 'choices',
    'rows',
  },
  {
    'sampler', 'sampling', 'compaction', 'tasks', 'policy', 'prompts',
    'sampler_programs', 'resharding',
  },
  {
    'evaluate', 'rollout', 'update', 'microbatch', 'cut', 'warmstart', 'checkpoint',
    'curves', 'workdir', 'roofline', 'footprint', 'knobs', 'outcomes', 'records',
    'contrast', 'jobs', 'finished', 'grouping', 'matched', 'frontier', 'offline',
    'replay', 'step_level',
  },
  {
    'batches', 'build', 'checks', 'briefing', 'programs', 'origin', 'suites', 'supply',
    'prepare',
  },
  {'train', 'ahead'},
  {'main', 'report', 'view'},
  {'study', 'counterfactual', 'lists'},
)  # fmt: skip
SIDEWAYS = {
  ('evaluate', 'rollout'),  # evaluation samples and verifies as training does
  ('objective', 'sequence'),
  ('objective', 'schedule'),
  ('objective', 'methods'),
  ('objective', 'tilt'),
  ('tilt', 'schedule'),
  ('tilt', 'sequence'),
  ('rows', 'sharding'),
  ('sequence', 'rows'),
  ('microbatch', 'cut'),
  ('hosts', 'sharding'),
  ('sampler', 'policy'),
  ('evaluate', 'outcomes'),
  ('outcomes', 'rollout'),
  ('records', 'evaluate'),
  ('records', 'outcomes'),
  ('records', 'rollout'),
  ('suites', 'build'),
  ('footprint', 'roofline'),
  ('knobs', 'footprint'),
  ('knobs', 'roofline'),
  ('sampler', 'compaction'),
  ('sampler_programs', 'compaction'),
  ('sampler_programs', 'sampler'),
  ('compaction', 'policy'),
  ('resharding', 'policy'),
  ('sampling', 'resharding'),
  ('briefing', 'build'),
  ('build', 'batches'),
  ('lists', 'counterfactual'),
  ('step_level', 'rollout'),
  ('jobs', 'workdir'),
  ('finished', 'curves'),
  ('grouping', 'contrast'),
  ('grouping', 'curves'),
  ('grouping', 'finished'),
  ('matched', 'contrast'),
  ('matched', 'finished'),
  ('frontier', 'contrast'),
  ('frontier', 'curves'),
  ('frontier', 'finished'),
  ('build', 'checks'),
  ('programs', 'build'),
  ('prepare', 'build'),
  ('prepare', 'programs'),
  ('prepare', 'batches'),
  ('origin', 'build'),
  ('origin', 'programs'),
  ('tokenizer', 'hub'),
  ('update', 'microbatch'),
  ('replay', 'microbatch'),
  ('supply', 'batches'),
  ('supply', 'build'),
}
# Offline, and at the top.
TOOLS = {'main', 'train', 'report', 'view', 'ahead', 'study', 'jobs',
         'counterfactual', 'lists'}
FILES = TOOLS | {
  'checkpoint', 'metrics', 'curves', 'workdir', 'records', 'tokenizer', 'images',
  'policy.pretrained', 'policy.export',
}
EFFECTS = {  # what only some modules may do -> those modules, packages by name
  'print': TOOLS | {'tokenizer', 'hosts', 'tasks.audit'},
  'log': TOOLS | {'checkpoint', 'metrics', 'phases', 'policy.pretrained', 'tasks'},
  'write files': FILES | {
    'tasks.audit', 'tasks.sandbox'},  # the room of a program, removed after it
  'read files': FILES | {'tasks', 'finished', 'compilation', 'offline'},
}
UNTESTED = {'types', 'problem', 'programs'}  # fields only; tested through train
NAMELESS = {'utils', 'util', 'helpers', 'helper', 'common', 'misc'}
MAX_FILE, MAX_FUNCTION = 320, 60  # lines


def _modules():
  return {
    '.'.join(path.relative_to(PACKAGE).with_suffix('').parts): path
    for path in sorted(PACKAGE.rglob('*.py'))
  }


MODULES = _modules()
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
CODE = [name for name in MODULES if name != '__init__']


def _layer(module):
  room = module.split('.')[0]
  found = [level for level, rooms in enumerate(LAYERS) if room in rooms]
  assert found, f'{module}: add it to LAYERS in architecture_test.py'
  return found[0]


def _imports(module):
  """Yield (dotted module, imported name or None) of every import statement."""
  for node in ast.walk(TREES[module]):
    if isinstance(node, ast.Import):
      yield from ((alias.name, None) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{module} has a relative import'
      yield from ((node.module, alias.name) for alias in node.names)


def _own(module):
  """Return the modules of ours that a module imports."""
  found = set()
  for source, name in _imports(module):
    if source.split('.')[0] != 'lpo_jax':
      continue
    path = source.split('.')[1:]
    for parts in ([*path, name] if name else path, path):
      for candidate in ('.'.join(parts), '.'.join([*parts, '__init__'])):
        if candidate in MODULES:
          found.add(candidate)
          break
      else:
        continue
      break
    else:
      raise AssertionError(f'{module} imports {source}.{name}, which is not ours')
  return found


def _dotted(node):
  parts = []
  while isinstance(node, ast.Attribute):
    parts.append(node.attr)
    node = node.value
  return '.'.join([*([node.id] if isinstance(node, ast.Name) else ['']), *parts[::-1]])


def _is_in(module, rooms):
  return module in rooms or module.split('.')[0] in rooms


@pytest.mark.parametrize('module', CODE)
def test_dependencies_point_one_way(module):
  room = module.split('.')[0]
  for other in sorted(_own(module) - {'__init__'}):
    target = other.split('.')[0]
    allowed = (
      target == room or _layer(other) < _layer(module) or (room, target) in SIDEWAYS
    )
    assert allowed, f'{module} must not import {other}'


def test_nothing_imports_itself_by_a_detour():
  done, path = set(), []

  def visit(module):
    assert module not in path, ' -> '.join([*path[path.index(module) :], module])
    if module not in done:
      path.append(module)
      for other in sorted(_own(module)):
        visit(other)
      done.add(path.pop())

  for module in MODULES:
    visit(module)


def test_the_mathematics_imports_nothing_of_ours_but_types():
  for module in CODE:
    room = module.split('.')[0]
    if room in {'simplex', 'baselines'}:
      other = {name for name in _own(module) if name.split('.')[0] != room}
      assert other <= {'types'}, module


def test_config_objects_stay_at_the_top():
  for module in CODE:
    used = {source.split('.')[0] for source, _ in _imports(module)}
    assert 'ml_collections' not in used or module in TOOLS | {'build'}, module


def test_flags_are_read_in_main_alone():
  for module in CODE:
    flags = [
      i for i in _imports(module) if i in (('absl', 'flags'), ('absl.flags', None))
    ]
    assert not flags or module in {'main', 'report', 'view'}, module


def _effects(module):
  for source, name in _imports(module):
    if (source, name) == ('absl', 'logging') or source in ('logging', 'absl.logging'):
      yield 'log'
  for node in ast.walk(TREES[module]):
    if not isinstance(node, ast.Call):
      continue
    called = _dotted(node.func)
    last = called.split('.')[-1]
    if called == 'print':
      yield 'print'
    elif last in ('write_text', 'write_bytes', 'unlink', 'rename') or called in (
      'os.replace', 'os.rename', 'os.remove', 'shutil.rmtree',
    ):  # fmt: skip
      yield 'write files'
    elif last in ('read_text', 'read_bytes'):
      yield 'read files'
    elif called == 'open' or called.endswith('.open'):
      mode = next((a.value for a in node.args if isinstance(a, ast.Constant)), 'r')
      yield 'write files' if set(str(mode)[:3]) & set('wax+') else 'read files'


@pytest.mark.parametrize('module', CODE)
def test_effects_stay_at_the_edges(module):
  for effect in set(_effects(module)):
    assert _is_in(module, EFFECTS[effect]), f'{module} must not {effect}'


def _is_module(source, name):
  if source.split('.')[0] == 'lpo_jax':
    path = PACKAGE.joinpath(*source.split('.')[1:], name)
    return path.with_suffix('.py').exists() or (path / '__init__.py').exists()
  try:
    return importlib.util.find_spec(f'{source}.{name}') is not None
  except ModuleNotFoundError:
    return importlib.util.find_spec(source.split('.')[0]) is None  # not installed


@pytest.mark.parametrize('module', CODE)
def test_modules_and_types_are_imported_never_functions(module):
  if module.endswith('__init__'):
    return  # a package's face names what it offers
  free = {'dataclasses', 'typing', 'collections.abc', 'lpo_jax.types'}
  for source, name in _imports(module):
    if name is None or source in free or name[0].isupper():
      continue
    assert _is_module(source, name), f'{module}: from {source} import {name}'


@pytest.mark.parametrize('module', CODE)
def test_nothing_reaches_into_private_names(module):
  hidden = ('jax._src', 'jax.interpreters', 'jaxlib')
  for source, name in _imports(module):
    full = f'{source}.{name}' if name else source
    assert not full.startswith(hidden), f'{module} imports {full}'
    if source.startswith('lpo_jax') and name:
      assert not name.startswith('_'), f'{module} imports {full}'
  ours = {name.split('.')[-1] for name in _own(module)}
  for node in ast.walk(TREES[module]):
    if isinstance(node, ast.Attribute):
      full = _dotted(node)
      assert not full.startswith(hidden), f'{module} uses {full}'
      owner, *rest = full.split('.')
      reaches = owner in ours and rest and re.match('_[^_]', rest[0])
      assert not reaches, f'{module} uses {full}'


@pytest.mark.parametrize('module', CODE)
def test_a_file_has_one_subject_and_stays_small(module):
  assert not NAMELESS & set(module.split('.')), f'{module} names no subject'
  lines = len(MODULES[module].read_text().splitlines())
  assert lines <= MAX_FILE, f'{module} has {lines} lines'
  for node in ast.walk(TREES[module]):
    if isinstance(node, ast.FunctionDef):
      length = node.end_lineno - node.lineno + 1
      assert length <= MAX_FUNCTION, f'{module}.{node.name} has {length} lines'


@pytest.mark.parametrize('module', CODE)
def test_a_file_and_its_public_names_say_what_they_are_for(module):
  tree = TREES[module]
  if not tree.body:
    return
  text = ast.get_docstring(tree) or ''
  lines = len(text.splitlines())
  shortest = 1 if module.endswith('__init__') else 3
  assert shortest <= lines <= 12, f'{module} opens with {lines} lines of docstring'
  for node in tree.body:
    public = isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != '_'
    assert not public or ast.get_docstring(node), (
      f'{module}.{node.name} is undocumented'
    )


@pytest.mark.parametrize('module', CODE)
def test_every_module_has_a_test_file(module):
  *package, stem = module.split('.')
  if module in UNTESTED or stem == '__init__':
    return
  names = {f'{"_".join([*package[i:], stem])}_test.py' for i in range(len(package) + 1)}
  names |= {f'{name}_test.py' for name in package}  # one file for a whole package
  there = {path.name for path in (ROOT / 'tests').glob('*_test.py')}
  assert names & there, f'{module}: none of {sorted(names)} exists'


def test_layers_name_only_what_the_design_has_once():
  for one, other in itertools.combinations(LAYERS, 2):
    assert not one & other
  for pair in SIDEWAYS:
    assert len({_layer(room) for room in pair}) == 1, pair


def test_no_file_names_somebodys_machine():
  rooms = 'lpo_jax tests configs experiments benchmarks notebooks docs .ci'.split()
  files = [path for room in rooms for path in (ROOT / room).rglob('*')]
  files += [path for path in ROOT.glob('*') if path.suffix in ('.md', '.py', '.toml')]
  kinds = {'.py', '.md', '.toml', '.ipynb', '.json', '.csv', '.txt', '.sh', ''}
  homes = re.compile(r'(?<![\w.:/])/(?:home|Users|root|work|mnt|workspace)/\w')
  for path in files:
    if path.suffix in kinds and path.is_file() and '__pycache__' not in path.parts:
      found = homes.search(path.read_text(errors='ignore'))
      assert not found, f'{path.relative_to(ROOT)}: {found and found[0]}...'
