"""The progress line of `clean`: records and bytes per second, time left."""

import sys
from types import TracebackType

from tqdm import tqdm


class CleanBar:
    """Shows how far a run is; without a total (a pipe) only how fast it is."""

    def __init__(self, total_bytes: int | None) -> None:
        self._records = 0
        interval = 0.5 if sys.stderr.isatty() else 30
        self._bar = tqdm(total=total_bytes, unit="B", unit_scale=True, mininterval=interval, desc="clean")

    def __enter__(self) -> "CleanBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._bar.close()

    def skip(self, num_bytes: int) -> None:
        """Counts what an earlier run has done; the rate and the time left are of this one."""
        self._bar.initial += num_bytes
        self._bar.update(num_bytes)

    def show(self, records: int, num_bytes: int) -> None:
        """Counts what was done just now."""
        self._records += records
        seconds = self._bar.format_dict["elapsed"] or 1.0
        self._bar.set_postfix_str(f"{self._records} records, {self._records / seconds:.0f} records/s", refresh=False)
        self._bar.update(num_bytes)
