"""What people touch: the command line and the web page. It reads and writes run directories and owns no numbers."""
