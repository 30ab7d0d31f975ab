"""The version of this package, which pyproject.toml and the changelog repeat."""

__version__ = "0.2.0"
