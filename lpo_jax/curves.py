"""Learning curves: mean over seeds with a band of one standard deviation.

Groups differ in colour, line style and marker at once, so a print in black and
white can be read. Numbers logged every step are smoothed by a running mean whose
width the axis states; validation numbers are drawn where they were measured.
"""

import collections
import contextlib
import dataclasses
import math
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from lpo_jax import metrics

# Okabe and Ito's colours, told apart under every common colour blindness.
# Three darker ones follow; groups that share one differ in dashes and marker.
_COLORS = ('#0072B2 #D55E00 #009E73 #CC79A7 #56B4E9 #E69F00 #000000 #882255 #7F7F7F '
           '#44AA99').split()
_DASHES = [
  '-',
  '--',
  '-.',
  ':',
  (0, (6, 1.5, 1, 1.5, 1, 1.5)),
  (0, (1, 1)),
  (0, (9, 3)),
]
_MARKERS = 'os^Dv*PXph'
_STYLE = {
  'font.size': 9,
  'axes.titlesize': 10,
  'axes.titleweight': 'bold',
  'axes.titlelocation': 'left',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.edgecolor': '#555555',
  'axes.grid': True,
  'axes.axisbelow': True,
  'grid.color': '#E4E4E4',
  'grid.linewidth': 0.7,
  'legend.frameon': False,
  'lines.linewidth': 1.7,
  'svg.hashsalt': 'lpo_jax',  # the same numbers give the same file
}


@dataclasses.dataclass(frozen=True)
class Panel:
  """One set of axes: which number, and what to call it."""

  metric: str
  title: str
  unit: str

  @property
  def validation(self) -> bool:
    return self.metric.startswith('val/')


def draw(groups: dict[str, list[list[dict]]], *paths: str, dpi: int = 160) -> bool:
  """Draw every panel the runs have numbers for into one figure.

  Args:
    groups: name -> one list of metrics rows per seed.
    paths: the images written, in the format that each ends in.
    dpi: of those made of pixels.

  Returns:
    Whether there was anything to draw.
  """
  shown = panels([row for runs in groups.values() for rows in runs for row in rows])
  if not shown:
    return False
  with drawing(len(shown), len(groups), paths, dpi=dpi) as (figure, axes):
    for panel, axis in zip(shown, axes, strict=True):
      _draw_panel(axis, panel, groups)
    draw_legend(figure, {name: len(runs) for name, runs in groups.items()})
  return True


@contextlib.contextmanager
def drawing(panels: int, groups: int, paths: Sequence[str],
            size: tuple[float, float] = (3.7, 2.75), dpi: int = 160):
  """Yield (figure, axes [panels]) in the house's style; save and close it at the end.

  Args:
    panels: how many.
    groups: names in the legend, for which room is left.
    paths: the images written, in the format that each ends in.
    size: of a panel, in inches.
    dpi: of images made of pixels.
  """
  import matplotlib  # imported here: training itself does not need it
  from matplotlib import figure as figures

  columns = min(3, panels)
  lines = -(-panels // columns)
  with matplotlib.rc_context(_STYLE):
    figure = figures.Figure(
      figsize=(size[0] * columns, size[1] * lines + 0.35 + 0.2 * groups),
      layout='constrained')
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis in axes[panels:]:
      axis.set_axis_off()
    yield figure, axes[:panels]
    for path in map(pathlib.Path, paths):
      path.parent.mkdir(parents=True, exist_ok=True)
      undated = {'metadata': {'Date': None}} if path.suffix == '.svg' else {}
      figure.savefig(path, dpi=dpi, **undated)


def of_run(workdir: str) -> bool:
  """Draw DIR/curves.png of one run from its metrics; return whether there were any."""
  rows = metrics.read(workdir)
  return draw({'this run': [rows]}, str(pathlib.Path(workdir) / 'curves.png'))


def followed(rows: Iterable[dict]) -> dict[str, dict[str, str]]:
  """Return validation set -> 'mean' or 'pass' -> the number that shows its course.

  It is the one measured most often, of these at the set's own n, or else the largest k.
  """
  counts = collections.Counter(
    name for row in rows for name, value in row.items() if value is not None)
  found = {}
  for name, count in counts.items():
    if match := re.fullmatch(r'val/(.+)/(mean|pass)@(\d+|n)', name):
      part, kind, size = match.groups()
      rank = count, math.inf if size == 'n' else int(size), name
      kinds = found.setdefault(part, {})
      kinds[kind] = max(kinds.get(kind, rank), rank)
  return {part: {kind: found[part][kind][-1] for kind in sorted(found[part])}
          for part in sorted(found)}


def panels(rows: list[dict]) -> list[Panel]:
  """Return the panels these rows have numbers for, in the order they are drawn."""
  names = {n for row in rows for n, value in row.items() if value is not None}
  units = {'mean': 'mean reward', 'pass': 'share of problems'}
  shown = [
    Panel(name, f'{part}, held out: {name.rpartition("/")[2]}', units[kind])
    for part, kinds in followed(rows).items() for kind, name in kinds.items()]
  training = (
    Panel('reward/mean', 'Training reward', 'mean reward'),
    Panel('actor/entropy', 'Token entropy', 'nats per token'),
    Panel('actor/grad_norm', 'Gradient norm', 'global L2 norm, before clipping'),
    Panel('response_length/mean', 'Response length', 'tokens'),
    Panel('group/flat_frac', 'Flat groups', 'share of groups, all rewards equal'),
  )
  return shown + [panel for panel in training if panel.metric in names]


def series(rows: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
  """Return (steps, values), each [points], of one number where it was measured."""
  pairs = [(row['step'], row[name]) for row in rows if row.get(name) is not None]
  return np.array([s for s, _ in pairs], int), np.array([v for _, v in pairs], float)


def smooth(values: np.ndarray, width: int) -> np.ndarray:
  """Return the centred running mean of values [points], cut short at both ends."""
  total = np.concatenate([[0.0], np.cumsum(values)])
  at = np.arange(len(values))
  first = np.maximum(at - width // 2, 0)
  last = np.minimum(at + width // 2 + 1, len(values))
  return (total[last] - total[first]) / (last - first)


def band(curves: list[tuple[np.ndarray, np.ndarray]]):
  """Return (steps, mean, sd) over seeds at the steps that every seed has.

  sd is the sample standard deviation; zero where there is one seed.
  """
  curves = [(steps, values) for steps, values in curves if len(steps)]
  if not curves:
    return np.array([], int), np.array([]), np.array([])
  shared = sorted(set.intersection(*(set(steps.tolist()) for steps, _ in curves)))
  stacked = np.stack([values[np.isin(steps, shared)] for steps, values in curves])
  spread = stacked.std(axis=0, ddof=1) if len(curves) > 1 else 0.0 * stacked[0]
  return np.array(shared, int), stacked.mean(axis=0), spread


def _draw_panel(axis, panel: Panel, groups: dict[str, list[list[dict]]]) -> None:
  curves = [[series(rows, panel.metric) for rows in runs] for runs in groups.values()]
  longest = max(steps[-1] for found in curves for steps, _ in found if len(steps))
  points = max(len(steps) for found in curves for steps, _ in found)
  width = 1 if panel.validation else max(1, points // 25) | 1
  for index, found in enumerate(curves):
    found = [(steps, smooth(values, width)) for steps, values in found]
    steps, mean, spread = band(found)
    if not len(steps):
      continue
    style = line_style(index)
    if len(steps) > 12:  # a marker on every point would hide the line
      every = max(1, len(steps) // 8)
      style['markevery'] = (index * every // max(1, len(groups)), every)
    axis.plot(steps, mean, zorder=3 + index, **style)
    axis.fill_between(
      steps, mean - spread, mean + spread, color=style['color'], alpha=0.16, linewidth=0
    )
  axis.set_title(panel.title)
  smoothed = f' (running mean over {width})' if width > 1 else ''
  axis.set_xlabel('training iteration' + smoothed)
  axis.set_ylabel(panel.unit)
  axis.set_xlim(0, 1.02 * max(longest, 1))
  axis.margins(x=0.0, y=0.08)


def draw_legend(figure, groups: dict[str, int],
                band: str = 'band: one standard deviation') -> None:
  """Name the groups below a figure.

  Args:
    figure: with its panels drawn.
    groups: name -> how many seeds.
    band: what is drawn of the spread over seeds.
  """
  from matplotlib import lines

  seeds = set(groups.values())
  handles = [
    lines.Line2D([], [], label=name if len(seeds) == 1 else f'{name} ({count} seeds)',
                 **line_style(index))
    for index, (name, count) in enumerate(groups.items())]
  title = f'mean over seeds, {band}' if max(seeds) > 1 else None
  if len(seeds) == 1 and max(seeds) > 1:
    title = f'mean of {max(seeds)} seeds, {band}'
  if title or len(groups) > 1:
    fitting = int(figure.get_figwidth() // 2.5)
    figure.legend(handles=handles, title=title, handlelength=4.0,
                  loc='outside lower center',
                  ncols=min(fitting, len(groups)) if max(map(len, groups)) < 40 else 1)


def line_style(index: int) -> dict:
  """Return how the index-th group is drawn: colour, dashes and marker are its own."""
  return {
    'color': _COLORS[index % len(_COLORS)],
    'linestyle': _DASHES[(index + index // len(_DASHES)) % len(_DASHES)],
    'marker': _MARKERS[index % len(_MARKERS)],
    'markersize': 4.5,
    'markerfacecolor': 'white',
  }
