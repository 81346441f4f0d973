"""Whether losses conflict, which of them, when, and what an operator makes of it.

operator = fastconfig.ConFIGOperator()
operator.monitor = monitor = fastconfig.monitor.Monitor(["residual", "initial", "boundary"])
...  # train
print(monitor.summary())
monitor.plot("conflict.png")
"""

from .figures import pairs
from .monitor import Monitor

__all__ = ["Monitor", "pairs"]
