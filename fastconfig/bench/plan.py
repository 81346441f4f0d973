"""Options -> which settings are run, which operations in each, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from ..backends import explain_auto, load
from .arguments import GROUPS
from .cases import Setting, passes, stages, updates

FULL_M, FULL_N = (2, 3, 8, 16, 32), (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
QUICK_M, QUICK_N = (3, 8), (1_000, 100_000, 1_000_000)
# Beside the matrix of float32 vectors, a full run has these forms and dtypes.
OTHER_M, OTHER_N = (3, 8), (10_000, 1_000_000)
OTHERS = (
    ("float32", "tensor"),
    ("float32", "parameters"),
    ("float64", "vectors"),
    ("bfloat16", "vectors"),
    ("float16", "vectors"),
)

PACE = 9  # shares of time that an operation takes with its peers and floor (benchmarks/results)


@dataclass(frozen=True)
class Options:
    """What to run; None leaves the choice to :func:`settings`.

    Attributes:
        m, n, dtype, form, only, backend: lists of what to take.
        device: as for torch.
        quick: the small matrix.
        memory: measure extra peak memory too.
    """

    m: tuple[int, ...] | None = None
    n: tuple[int, ...] | None = None
    dtype: tuple[str, ...] | None = None
    form: tuple[str, ...] | None = None
    only: tuple[str, ...] | None = None
    backend: tuple[str, ...] | None = None
    device: str = "cpu"
    quick: bool = False
    memory: bool = True

    @property
    def share(self) -> float:
        """Seconds for each contestant of a setting."""
        return 0.03 if self.quick else 0.35

    @property
    def least(self) -> int:
        """Samples at least of this package and of the floor."""
        return 5 if self.quick else 15

    @property
    def call_limit(self) -> float:
        """Seconds: a peer whose call takes longer is left out."""
        return 0.4 if self.quick else 4.0


def settings(options: Options) -> list[Setting]:
    """All combinations of the named values, with defaults for the rest; small ones first."""
    ms = options.m or (QUICK_M if options.quick else FULL_M)
    ns = options.n or (QUICK_N if options.quick else FULL_N)
    dtypes, forms = options.dtype or ("float32",), options.form or ("vectors",)
    found = [Setting(m, n, dtype, form) for dtype in dtypes for form in forms for m in ms for n in ns]
    if not options.quick and not any((options.m, options.n, options.dtype, options.form)):
        found += [Setting(m, n, dtype, form) for dtype, form in OTHERS for m in OTHER_M for n in OTHER_N]
    return found


def backends(options: Options, device_type: str) -> list[str]:
    """Backends to time, the one that "auto" takes first.

    Raises:
        ValueError: for an unknown name.
        BackendUnavailable: for one that cannot run here.
    """
    if options.backend is None:
        return [name for name, reason in explain_auto(device_type) if reason is None]
    for name in options.backend:
        load(name)
    return list(options.backend)


def operations(options: Options, setting: Setting, backend: str, order: list[str]) -> list[str]:
    """What a backend does in a setting: all where it was asked for by name or is the default."""
    named = [name for group in options.only or GROUPS for name in _of_group(group)]
    smallest = min(s.n for s in settings(options) if s.m == setting.m)
    if setting.n > smallest or (setting.dtype, setting.form) != _first(options):
        named = [name for name in named if name in passes()]  # the m x m stage does not depend on N
    if options.backend is None and backend != order[0]:
        named = [name for name in named if name in ("gram", "combine", "ConFIG_update")]
    return named


def expected(options: Options, chosen: list[Setting], order: list[str]) -> str:
    """About how long a run takes, in words."""
    rows = sum(len(operations(options, setting, backend, order)) for setting in chosen for backend in order)
    seconds = PACE * rows * options.share
    time = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{max(seconds, 10):.0f} seconds"
    return f"about {time}; Ctrl-C keeps what is measured by then"


def _of_group(group: str) -> list[str]:
    """Operations, those of methods that were added to ``RULES`` behind this package's own."""
    more = {"update": updates(), "solve": stages()}.get(group, {})
    known = {name for names in GROUPS.values() for name in names}
    return [*GROUPS[group], *(name for name in more if name not in known)]


def _first(options: Options) -> tuple[str, str]:
    return (options.dtype or ("float32",))[0], (options.form or ("vectors",))[0]
