"""What a user would pick instead, measured side by side: see ``__main__``."""
