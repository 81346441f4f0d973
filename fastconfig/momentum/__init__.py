"""The state of momentum operators: momenta, their step and clock, and the indexes of a step's losses."""

import sys

from . import clock, state

sys.modules |= {"fastconfig.momenta": state, "fastconfig.clock": clock}  # where pickles of version 0.1 look
