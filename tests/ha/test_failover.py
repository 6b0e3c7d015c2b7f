"""A cluster for real: its primary dies, and nothing that was acknowledged is lost."""

from pathlib import Path
from tempfile import TemporaryDirectory

from tests.ha.drill import drill


def test_the_death_of_the_primary_loses_nothing() -> None:
    with TemporaryDirectory(prefix="tq-ha-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)  # the database's user passes through
        result = drill(folder, seed=1, rounds=1, faults=["postgres"])
        assert [one.fault for one in result.measured] == ["primary's PostgreSQL killed"]
        assert result.wrong == [], result.told
