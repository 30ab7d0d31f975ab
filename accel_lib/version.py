"""The version of this package, which pyproject.toml and the changelog repeat."""

__version__ = "0.1.0"
