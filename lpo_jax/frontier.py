"""Pass@1 against pass@k: every method's way through its evaluations, and who leads.

A point is on the frontier if no other is at least as high in both scores and higher in
one. Methods are judged by where they end, as means over seeds and seed by seed.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lpo_jax import contrast, curves, finished, page

Paths = Mapping[str, Mapping[int, finished.Path]]  # group -> seed -> path


def undominated(points: np.ndarray) -> np.ndarray:
  """Return bool[n]: which of the points [n, 2] no other dominates."""
  no_less = (points[None] >= points[:, None]).all(axis=-1)
  more = (points[None] > points[:, None]).any(axis=-1)
  return ~(no_less & more).any(axis=1)


def mean_path(paths: Sequence[finished.Path]) -> tuple[np.ndarray, np.ndarray]:
  """Return mean and sd over seeds, [n, 2] each, at the evaluations that all have."""
  found = [curves.band([(path.spent['iterations'], values) for path, values in
                        zip(paths, scores, strict=True)])[1:]
           for scores in ([path.pass_1 for path in paths],
                          [path.pass_k for path in paths])]
  mean, deviation = np.stack(found, axis=-1)
  return mean, deviation


def section(paths: Paths, names: tuple[str, str], figure: str) -> page.Section:
  """Return who is on the frontier where training ended.

  Args:
    paths: with an evaluation or more each.
    names: what to call pass@1 and pass@k.
    figure: the name of its drawing.
  """
  ends = {group: [np.array([path.pass_1[-1], path.pass_k[-1]])
                  for path in seeds.values()] for group, seeds in paths.items()}
  leading = undominated(np.stack([np.mean(points, axis=0) for points in ends.values()]))
  means = {group: mean_path(list(seeds.values()))[0][1:]  # after the shared start
           for group, seeds in paths.items()}
  ever = np.split(undominated(np.concatenate(list(means.values()))),
                  np.cumsum([len(points) for points in means.values()])[:-1])
  rows = []
  for (group, points), leads, course in zip(ends.items(), leading, ever, strict=True):
    alone = _seeds_leading(paths, group)
    cells = [contrast.Cell(tuple(float(p[i]) for p in points)).shown(len(points))
             for i in (0, 1)]
    rows.append((group, *cells, 'yes' if leads else 'no',
                 f'{sum(alone)} of {len(alone)}',
                 f'{int(course.sum())} of {len(course)}'))
  first, kth = names
  return page.Section(
    f'{first} against {kth}',
    ('runs', first, kth, 'on the frontier', 'seeds on it', 'evaluations on it'),
    tuple(rows),
    ('Last evaluation, mean ± standard deviation over seeds. On the frontier: no other '
     'method is at least as good in both and better in one, by the means; seeds on it: '
     'the same among the runs of one seed; evaluations on it: how many of its '
     'evaluations after the first (means over seeds) no evaluation of any method '
     'dominates.',), figure)


def _seeds_leading(paths: Paths, group: str) -> list[bool]:
  """Return for each seed of a group whether its end is undominated within the seed."""
  found = []
  for seed, path in paths[group].items():
    ends = [(other[seed].pass_1[-1], other[seed].pass_k[-1])
            for other in paths.values() if seed in other]
    mine = (path.pass_1[-1], path.pass_k[-1])
    found.append(bool(undominated(np.array(ends))[ends.index(mine)]))
  return found


def draw(sets: Mapping[str, tuple[Paths, tuple[str, str]]], *paths: str,
         dpi: int = 160) -> None:
  """Draw pass@1 against pass@k, a panel for each validation set.

  Args:
    sets: name -> its paths, and what its pass@1 and pass@k are called.
    paths: the images written, in the format that each ends in.
    dpi: of those made of pixels.
  """
  seeds = {group: len(runs) for found, _ in sets.values()
           for group, runs in found.items()}
  with curves.drawing(len(sets), len(seeds), paths, (6.4, 4.6), dpi) as (figure, axes):
    for axis, (part, (found, names)) in zip(axes, sets.items(), strict=True):
      _draw_panel(axis, part, found, names)
    curves.draw_legend(figure, seeds, 'bars: one standard deviation at the end')


def _draw_panel(axis, part: str, paths: Paths, names: tuple[str, str]) -> None:
  ends = []
  for index, runs in enumerate(paths.values()):
    mean, deviation = mean_path(list(runs.values()))
    if not len(mean):  # its seeds were never evaluated at the same iteration
      continue
    style = curves.line_style(index)
    axis.plot(*mean.T, zorder=3 + index, **(style | {'markersize': 3.5}))
    axis.errorbar(*mean[-1], deviation[-1, 1], deviation[-1, 0], zorder=30 + index,
                  **(style | {'markersize': 9, 'linestyle': '', 'linewidth': 1.2}))
    ends.append(mean[-1])
  ends = np.reshape(ends, (-1, 2))
  leading = ends[undominated(ends)]
  leading = leading[np.argsort(leading[:, 0])]
  axis.plot(*leading.T, color='#BBBBBB', linewidth=6, zorder=1,
            solid_capstyle='round')
  axis.set_title(f'{part}, held out')
  first, kth = (name.removeprefix(part).strip() for name in names)
  axis.set_xlabel(f'{first}, the mean over samples: pass@1')
  axis.set_ylabel(kth)
