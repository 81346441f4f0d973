"""``fastconfig demo``: Burgers' equation with three losses, by ConFIG and by others."""
