r"""Mathematics with a checkable answer, given in \boxed{}.

`verify(gold, response)` is the verdict, from `math_verdict`: safe on any text and
from any thread, within 10 s.
"""

from lpo_jax.tasks import math_verdict

verify = math_verdict.verify
judge = math_verdict.judge
