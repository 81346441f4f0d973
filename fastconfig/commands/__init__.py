"""What the command line serves beside the demo and the bench."""
