"""``fastconfig bench``: time, accuracy and memory of every operation beside a memory floor and the peers."""
