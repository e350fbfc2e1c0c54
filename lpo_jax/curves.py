"""Learning curves: mean over seeds with a band of one standard deviation.

Groups differ in colour, line style and marker at once, so a print in black and
white can be read. Numbers logged every step are smoothed by a running mean whose
width the axis states; validation numbers are drawn where they were measured.
"""

import collections
import dataclasses
import math
import pathlib
import re

import numpy as np

from lpo_jax import metrics

# Okabe and Ito's colours, told apart under every common colour blindness.
_COLORS = '#0072B2 #D55E00 #009E73 #CC79A7 #56B4E9 #E69F00 #000000'.split()
_DASHES = [
  '-',
  '--',
  '-.',
  ':',
  (0, (6, 1.5, 1, 1.5, 1, 1.5)),
  (0, (1, 1)),
  (0, (9, 3)),
]
_MARKERS = 'os^Dv*P'
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


def draw(groups: dict[str, list[list[dict]]], path: str) -> bool:
  """Draw every panel the runs have numbers for into one PNG.

  Args:
    groups: name -> one list of metrics rows per seed.
    path: the image written.

  Returns:
    Whether there was anything to draw.
  """
  shown = panels([row for runs in groups.values() for rows in runs for row in rows])
  if not shown:
    return False
  import matplotlib  # imported here: training itself does not need it

  matplotlib.use('Agg')
  from matplotlib import pyplot

  with pyplot.rc_context(_STYLE):
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure, axes = pyplot.subplots(
      lines,
      columns,
      figsize=(3.7 * columns, 2.75 * lines + 0.35 + 0.2 * len(groups)),
      squeeze=False,
      layout='constrained',
    )
    for panel, axis in zip(shown, axes.flat, strict=False):
      _draw_panel(axis, panel, groups)
    for axis in axes.flat[len(shown) :]:
      axis.set_axis_off()
    _draw_legend(figure, groups)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    pyplot.close(figure)
  return True


def of_run(workdir: str) -> bool:
  """Draw DIR/curves.png of one run from its metrics; return whether there were any."""
  rows = metrics.read(workdir)
  return draw({'this run': [rows]}, str(pathlib.Path(workdir) / 'curves.png'))


def panels(rows: list[dict]) -> list[Panel]:
  """Return the panels these rows have numbers for, in the order they are drawn."""
  names = collections.Counter(
    n for row in rows for n, value in row.items() if value is not None)
  shown = []
  for part in sorted({n.split('/')[1] for n in names if n.startswith('val/')}):
    for kind, unit in (('mean', 'mean reward'), ('pass', 'share of problems')):
      found = [
        # The best followed, of these the sets' own n, or else the largest k.
        (count, math.inf if match[1] == 'n' else int(match[1]), name)
        for name, count in names.items()
        if (match := re.fullmatch(rf'val/{re.escape(part)}/{kind}@(\d+|n)', name))
      ]
      if found:
        name = max(found)[-1]
        size = name.rpartition('@')[2]
        shown.append(Panel(name, f'{part}, held out: {kind}@{size}', unit))
  training = (
    Panel('reward/mean', 'Training reward', 'mean reward'),
    Panel('actor/entropy', 'Response entropy', 'nats per token'),
    Panel('actor/grad_norm', 'Gradient norm', 'global L2 norm, before clipping'),
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
    style = _line_style(index)
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


def _draw_legend(figure, groups: dict[str, list[list[dict]]]) -> None:
  from matplotlib import lines

  seeds = {len(runs) for runs in groups.values()}
  handles = [
    lines.Line2D([], [], label=_label(name, runs, seeds), **_line_style(index))
    for index, (name, runs) in enumerate(groups.items())
  ]
  title = 'mean over seeds, band: one standard deviation' if max(seeds) > 1 else None
  if len(seeds) == 1 and max(seeds) > 1:
    title = f'mean of {max(seeds)} seeds, band: one standard deviation'
  if title or len(groups) > 1:
    figure.legend(
      handles=handles,
      title=title,
      handlelength=4.0,
      loc='outside lower center',
      ncols=min(4, len(groups)) if max(map(len, groups)) < 40 else 1,
    )


def _label(name: str, runs: list, seeds: set[int]) -> str:
  return name if len(seeds) == 1 else f'{name} ({len(runs)} seeds)'


def _line_style(index: int) -> dict:
  return {
    'color': _COLORS[index % len(_COLORS)],
    'linestyle': _DASHES[(index + index // len(_DASHES)) % len(_DASHES)],
    'marker': _MARKERS[index % len(_MARKERS)],
    'markersize': 4.5,
    'markerfacecolor': 'white',
  }
