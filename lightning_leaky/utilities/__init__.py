"""What every room may use: processes, imports by path, progress bars, optimizer steps, arguments."""
