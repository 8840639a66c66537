"""What goes over wires, in and out. Pure."""
