"""The methods that made the shipped models, and the commands that make and measure them again."""
