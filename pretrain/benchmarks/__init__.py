"""How fast a run trains, reads its data and decodes, on the devices of this process."""
