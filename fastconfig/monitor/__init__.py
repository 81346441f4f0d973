"""Whether losses conflict, which of them, when, and what an operator makes of it.

operator = fastconfig.ConFIGOperator()
operator.monitor = monitor = fastconfig.monitor.Monitor(["residual", "initial", "boundary"])
...  # train
print(monitor.summary())
monitor.plot("conflict.png")
"""

from .checking import Diagnosis, check
from .figures import pairs
from .loggers import AccelerateTrackers, JSONLines, Logger, TensorBoard, WandB, lightning_callback
from .monitor import Monitor
from .summary import Summary

__all__ = [
    "AccelerateTrackers",
    "Diagnosis",
    "JSONLines",
    "Logger",
    "Monitor",
    "Summary",
    "TensorBoard",
    "WandB",
    "check",
    "lightning_callback",
    "pairs",
]
