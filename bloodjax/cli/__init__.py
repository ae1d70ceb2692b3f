"""Shared by all commands: flags, exit statuses, the terminal, the compilation cache."""
