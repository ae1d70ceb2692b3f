"""What every command shares: flags, exit statuses, the terminal, the compilation cache."""
