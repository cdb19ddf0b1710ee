from tests.cli.conftest import shelf

__all__ = ["shelf"]
