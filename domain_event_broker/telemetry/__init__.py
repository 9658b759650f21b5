"""What others may see of an event's way: traces. Optional, and loaded where it is switched on."""
